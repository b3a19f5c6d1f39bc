//! The claim and allocation protocol, explored completely: two hosts and a garbage collector around one block, every
//! interleaving of their reads and writes, a crash possible at every step.
//!
//! The same exploration finds what goes wrong when any one of the protocol's precautions is left out; so it would also
//! find it if the protocol itself lacked one. (It did: `ConfirmUnwritten` was the first version.)

use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Claim {
    Pending,
    Confirmed,
    Leaving,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Block {
    owner: usize,
    slots: [Option<usize>; 2],
    rev: u8,
    /// Writes since creation: what the last mutant compares in place of the revision.
    version: u8,
}

type Affinity = Option<(Claim, u8)>;

/// What an actor has read and is about to act upon. Idle is also where a crash leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Actor {
    Idle,
    ClaimRead(Affinity),
    ClaimReadBoth(Affinity, Option<Block>),
    /// The block was written while the claim was this.
    Confirm(Affinity),
    Allocate(usize, Block),
    Release(usize, Block),
    LeaveRead(usize, Option<Block>),
    LeaveReadBoth(usize, Affinity, Option<Block>),
    /// The collector has read a block with this handle's address, and has not looked at the workloads yet.
    Suspect(usize, Block),
    /// It has looked: nobody uses the address.
    Collect(usize, Block),
    /// The mutant: it has looked first, and reads the block afterwards.
    Unused(usize),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    next: u8,
    affinity: [Affinity; 2],
    block: Option<Block>,
    /// Handles whose workload is using its address.
    live: [bool; 3],
    /// Host 0, host 1, the collector.
    actors: [Actor; 3],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mutant {
    None,
    NoPendingPhase,
    BlindDelete,
    BlindWrite,
    CompareVersion,
    ConfirmUnwritten,
    /// Who comes back to an address that is his does not write the block.
    NoRenewal,
    /// The collector looks at the workloads before it reads the block.
    LookFirst,
}

const HOST_OF: [usize; 3] = [0, 0, 1];

impl World {
    /// Only the order of revisions matters; so equal situations at different times are one state.
    fn canonical(mut self) -> Self {
        let mut revs: Vec<&mut u8> = Vec::new();
        revs.extend(self.affinity.iter_mut().flatten().map(|(_, rev)| rev));
        revs.extend(self.block.as_mut().map(|b| &mut b.rev));
        for actor in &mut self.actors {
            let (affinity, block) = match actor {
                Actor::Idle | Actor::Unused(_) => (None, None),
                Actor::ClaimRead(a) | Actor::Confirm(a) => (a.as_mut(), None),
                Actor::LeaveRead(_, b) => (None, b.as_mut()),
                Actor::ClaimReadBoth(a, b) | Actor::LeaveReadBoth(_, a, b) => (a.as_mut(), b.as_mut()),
                Actor::Allocate(_, b)
                | Actor::Release(_, b)
                | Actor::Suspect(_, b)
                | Actor::Collect(_, b) => (None, Some(b)),
            };
            revs.extend(affinity.map(|(_, rev)| rev));
            revs.extend(block.map(|b| &mut b.rev));
        }
        let mut order: Vec<u8> = revs.iter().map(|rev| **rev).collect();
        order.sort_unstable();
        order.dedup();
        for rev in revs {
            *rev = order.iter().position(|r| *r == *rev).unwrap() as u8;
        }
        self.next = order.len() as u8;
        self
    }

    fn set_affinity(&mut self, host: usize, expect: Affinity, claim: Option<Claim>) {
        if self.affinity[host].map(|(_, rev)| rev) == expect.map(|(_, rev)| rev) {
            self.affinity[host] = claim.map(|claim| (claim, self.next));
            self.next += 1;
        }
    }

    /// The compare-and-swap of the block. Says whether it was written.
    fn set_block(
        &mut self,
        expect: Option<Block>,
        new: Option<(usize, [Option<usize>; 2])>,
        mutant: Mutant,
    ) -> bool {
        let same = match (mutant, self.block, expect) {
            (Mutant::BlindDelete, _, _) if new.is_none() => true,
            (Mutant::BlindWrite, Some(_), Some(_)) if new.is_some() => true,
            (Mutant::CompareVersion, Some(now), Some(then)) => now.version == then.version,
            (_, now, then) => now.map(|b| b.rev) == then.map(|b| b.rev),
        };
        if same {
            let version = self.block.map_or(1, |b| b.version + 1);
            self.block = new.map(|(owner, slots)| Block {
                owner,
                slots,
                rev: self.next,
                version,
            });
            self.next += 1;
        }
        same
    }

    fn violation(&self) -> Option<&'static str> {
        let confirmed = |host: usize| matches!(self.affinity[host], Some((Claim::Confirmed, _)));
        let foreign = |host: usize| self.block.is_some_and(|b| b.owner != host);
        if confirmed(0) && confirmed(1) || (0..2).any(|host| confirmed(host) && foreign(host)) {
            return Some("two owners");
        }
        let recorded = |handle| self.block.is_some_and(|b| b.slots.contains(&Some(handle)));
        (0..3)
            .any(|handle| self.live[handle] && !recorded(handle))
            .then_some("a live address is lost")
    }

    /// Everything that can happen next.
    fn successors(&self, mutant: Mutant, borrowing: bool, handles: &[usize], slots: usize) -> Vec<Self> {
        let mut all = Vec::new();
        for (who, actor) in self.actors.into_iter().enumerate() {
            let mut then = |next: Actor, change: &mut dyn FnMut(&mut Self)| {
                let mut world = self.clone();
                world.actors[who] = next;
                change(&mut world);
                // Versions grow for ever; what they show, they show early.
                if mutant != Mutant::CompareVersion || world.block.is_none_or(|b| b.version <= 4) {
                    if mutant != Mutant::CompareVersion {
                        world.forget_versions();
                    }
                    all.push(world.canonical());
                }
            };
            let nothing = &mut |_: &mut Self| {};
            match actor {
                Actor::Idle if who == 2 => {
                    // One host's block is enough to be given back and claimed by the other.
                    then(Actor::LeaveRead(0, self.block), nothing);
                    // And one handle is enough to be collected.
                    for handle in handles.iter().copied().take(1) {
                        if mutant == Mutant::LookFirst && !self.live[handle] {
                            then(Actor::Unused(handle), nothing);
                        } else if let Some(block) = self.block.filter(|b| b.slots.contains(&Some(handle))) {
                            then(Actor::Suspect(handle, block), nothing);
                        }
                    }
                }
                Actor::Unused(handle) => {
                    if let Some(block) = self.block.filter(|b| b.slots.contains(&Some(handle))) {
                        then(Actor::Collect(handle, block), nothing);
                    }
                }
                Actor::Suspect(handle, seen) => {
                    let next = if self.live[handle] {
                        Actor::Idle
                    } else {
                        Actor::Collect(handle, seen)
                    };
                    then(next, nothing);
                }
                Actor::Idle => {
                    then(Actor::ClaimRead(self.affinity[who]), nothing);
                    let usable = self.block.filter(|b| borrowing || b.owner == who);
                    for handle in handles.iter().copied().filter(|handle| HOST_OF[*handle] == who) {
                        if let (Some(block), false) = (usable, self.live[handle]) {
                            then(Actor::Allocate(handle, block), nothing);
                        }
                        if let Some(block) = self.block.filter(|b| b.slots.contains(&Some(handle))) {
                            // The workload is gone before its address is released.
                            then(Actor::Release(handle, block), &mut |w| w.live[handle] = false);
                        }
                    }
                }
                Actor::ClaimRead(None) => then(Actor::Idle, &mut |w| {
                    let first = if mutant == Mutant::NoPendingPhase {
                        Claim::Confirmed
                    } else {
                        Claim::Pending
                    };
                    w.set_affinity(who, None, Some(first));
                }),
                Actor::ClaimRead(seen @ Some((Claim::Leaving, _))) => {
                    then(Actor::Idle, &mut |w| {
                        w.set_affinity(who, seen, Some(Claim::Pending))
                    });
                }
                Actor::ClaimRead(seen) => then(Actor::ClaimReadBoth(seen, self.block), nothing),
                Actor::ClaimReadBoth(claim, seen) => {
                    let (confirmed, mine) = (
                        matches!(claim, Some((Claim::Confirmed, _))),
                        seen.is_some_and(|b| b.owner == who),
                    );
                    if confirmed && !(mutant == Mutant::NoPendingPhase && seen.is_none()) {
                        let back = if mine {
                            claim.map(|c| c.0)
                        } else {
                            Some(Claim::Pending)
                        };
                        then(Actor::Idle, &mut |w| {
                            if !mine {
                                w.set_affinity(who, claim, back)
                            }
                        });
                    } else if seen.is_some() && !mine {
                        then(Actor::Idle, &mut |w| w.set_affinity(who, claim, None));
                    } else {
                        let new = (who, seen.map_or([None; 2], |b| b.slots));
                        let unwritten = mutant == Mutant::ConfirmUnwritten && mine;
                        let written = unwritten || self.clone().set_block(seen, Some(new), mutant);
                        let next = if written {
                            Actor::Confirm(claim)
                        } else {
                            Actor::Idle
                        };
                        then(next, &mut |w| {
                            if !unwritten {
                                w.set_block(seen, Some(new), mutant);
                            }
                        });
                    }
                }
                Actor::Confirm(claim) => {
                    then(Actor::Idle, &mut |w| {
                        w.set_affinity(who, claim, Some(Claim::Confirmed))
                    });
                }
                Actor::Allocate(handle, seen) => then(Actor::Idle, &mut |w| {
                    if seen.slots.contains(&Some(handle)) {
                        // An earlier attempt's, found again. The block is written, for a collector who did not see it.
                        w.live[handle] = mutant == Mutant::NoRenewal
                            || w.set_block(Some(seen), Some((seen.owner, seen.slots)), mutant);
                    } else if let Some(free) = seen.slots.iter().take(slots).position(Option::is_none) {
                        let mut slots = seen.slots;
                        slots[free] = Some(handle);
                        w.live[handle] = w.set_block(Some(seen), Some((seen.owner, slots)), mutant);
                    }
                }),
                Actor::Release(handle, seen) | Actor::Collect(handle, seen) => then(Actor::Idle, &mut |w| {
                    let slots = seen.slots.map(|slot| slot.filter(|h| *h != handle));
                    if slots != seen.slots {
                        w.set_block(Some(seen), Some((seen.owner, slots)), mutant);
                    }
                }),
                Actor::LeaveRead(host, seen) => match self.affinity[host] {
                    None => then(Actor::Idle, nothing),
                    claim => then(Actor::LeaveReadBoth(host, claim, seen), nothing),
                },
                Actor::LeaveReadBoth(host, claim, seen) => then(Actor::Idle, &mut |w| {
                    let state = claim.map(|(state, _)| state);
                    match seen.filter(|b| b.owner == host) {
                        Some(block) if block.slots != [None; 2] => {
                            // Turned back; whoever claims next finishes that.
                            if state != Some(Claim::Confirmed) {
                                w.set_affinity(host, claim, Some(Claim::Pending));
                            }
                        }
                        _ if state != Some(Claim::Leaving) => {
                            w.set_affinity(host, claim, Some(Claim::Leaving))
                        }
                        Some(block) => drop(w.set_block(Some(block), None, mutant)),
                        None => w.set_affinity(host, claim, None),
                    }
                }),
            }
            if actor != Actor::Idle {
                then(Actor::Idle, nothing); // a crash
            }
        }
        all
    }

    fn forget_versions(&mut self) {
        let mut forget = |block: &mut Block| block.version = 0;
        self.block.as_mut().map(&mut forget);
        for actor in &mut self.actors {
            match actor {
                Actor::ClaimReadBoth(_, Some(b)) | Actor::LeaveRead(_, Some(b)) => forget(b),
                Actor::LeaveReadBoth(_, _, Some(b)) => forget(b),
                Actor::Allocate(_, b)
                | Actor::Release(_, b)
                | Actor::Suspect(_, b)
                | Actor::Collect(_, b) => forget(b),
                _ => {}
            }
        }
    }
}

/// Explores breadth first. `Ok`: states; `Err`: what broke, after how many steps.
fn explore(mutant: Mutant, borrowing: bool, handles: &[usize]) -> Result<usize, (&'static str, usize)> {
    // Two addresses make the states many; one mutant needs them to show.
    let slots = if mutant == Mutant::CompareVersion { 2 } else { 1 };
    let start = World {
        next: 0,
        affinity: [None; 2],
        block: None,
        live: [false; 3],
        actors: [Actor::Idle; 3],
    };
    // States by their hash: two of some 10^5 states share one of 2^64 with a chance of 10^-9.
    let hash = |world: &World| BuildHasherDefault::<DefaultHasher>::default().hash_one(world);
    let mut seen = HashSet::from([hash(&start)]);
    let mut queue = VecDeque::from([(start, 0)]);
    while let Some((world, depth)) = queue.pop_front() {
        for next in world.successors(mutant, borrowing, handles, slots) {
            if let Some(what) = next.violation() {
                return Err((what, depth + 1));
            }
            if seen.insert(hash(&next)) {
                queue.push_back((next, depth + 1));
            }
        }
    }
    Ok(seen.len())
}

#[test]
fn the_protocol_holds_in_every_ordering() {
    for borrowing in [false, true] {
        let states = explore(Mutant::None, borrowing, &[0, 2])
            .unwrap_or_else(|e| panic!("borrowing {borrowing}: {e:?}"));
        println!("borrowing {borrowing}: {states} states");
        assert!(states > 1_000, "{states} states are not an exploration");
    }
}

#[test]
fn without_any_one_precaution_it_breaks() {
    for (mutant, handles, what) in [
        (Mutant::NoPendingPhase, &[0, 2][..], "two owners"),
        (Mutant::BlindDelete, &[0, 2], "a live address is lost"),
        (Mutant::BlindWrite, &[0, 2], "a live address is lost"),
        (Mutant::CompareVersion, &[0, 1], "two owners"),
        (Mutant::ConfirmUnwritten, &[0, 2], "two owners"),
        (Mutant::NoRenewal, &[0, 2], "a live address is lost"),
        (Mutant::LookFirst, &[0, 2], "a live address is lost"),
    ] {
        let broken = explore(mutant, true, handles).expect_err("the exploration must find it");
        println!("{mutant:?}: {broken:?}");
        assert_eq!(broken.0, what, "{mutant:?}");
    }
}
