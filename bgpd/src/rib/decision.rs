//! Which path is used: RFC 4271 §9.1.2.2 with RFC 4456 §9, one step after the other.
//!
//! Each step looks at the paths still standing and knocks out those that are worse than the best of them. So the result does
//! not depend on the order in which paths came, not even with MED, which compares only paths of one neighbour AS. Whoever
//! is knocked out remembers by which step: that is what `show` tells. The IGP metric to the next hop is not a step: here
//! every next hop is a router on the link or a host route of the fabric.

use std::net::IpAddr;

use serde::Serialize;
use smallvec::SmallVec;

use crate::filter::PeerType;
use crate::wire::{Community, PathAttributes};

/// LOCAL_PREF of a path that has none.
pub const DEFAULT_LOCAL_PREF: u32 = 100;

/// A path as the decision sees it.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// What was said.
    pub attributes: &'a PathAttributes,
    /// Originated here; the rest of the identity means nothing then.
    pub local: bool,
    /// Inside or outside.
    pub peer_type: PeerType,
    /// BGP Identifier of who said it.
    pub router_id: u32,
    /// Its address.
    pub address: IpAddr,
    /// What tells it from others of the same peer (RFC 7911).
    pub path_id: u32,
}

/// A step of the decision, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// What we originate ourselves beats what we are told.
    Local,
    /// Anything before what is only kept for want of something better (LLGR_STALE, RFC 9494 §4.3).
    LongLivedStale,
    /// Highest LOCAL_PREF.
    LocalPref,
    /// Shortest AS_PATH; a set counts one.
    AsPathLength,
    /// Lowest ORIGIN.
    Origin,
    /// Lowest MULTI_EXIT_DISC among paths of one neighbour AS; absent is 0.
    Med,
    /// eBGP over iBGP.
    PeerType,
    /// Lowest BGP Identifier; the ORIGINATOR_ID where there is one.
    RouterId,
    /// Shortest CLUSTER_LIST.
    ClusterList,
    /// Lowest peer address.
    PeerAddress,
    /// Lowest path identifier, among paths of one peer (RFC 7911).
    PathId,
}

impl Step {
    /// The step in words, after "lost by" or "won by".
    pub fn words(self) -> &'static str {
        match self {
            Self::Local => "local origin",
            Self::LongLivedStale => "long-lived staleness",
            Self::LocalPref => "LOCAL_PREF",
            Self::AsPathLength => "AS_PATH length",
            Self::Origin => "ORIGIN",
            Self::Med => "MED",
            Self::PeerType => "eBGP over iBGP",
            Self::RouterId => "router id",
            Self::ClusterList => "CLUSTER_LIST length",
            Self::PeerAddress => "peer address",
            Self::PathId => "path identifier",
        }
    }
}

/// The outcome for all paths to one destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Indices of the candidates, best first, then its equals, then the others by how far they came.
    pub order: SmallVec<[usize; 8]>,
    /// By candidate: the step that knocked it out; none for the best.
    pub lost_at: SmallVec<[Option<Step>; 8]>,
    /// How many at the front of `order` may be used together: equal up to and including [`Step::PeerType`].
    pub equal: usize,
}

/// Decides. With no candidate there is nothing to decide, and the answer is empty.
pub fn decide(candidates: &[Candidate<'_>]) -> Decision {
    let mut field = Field {
        candidates,
        lost_at: smallvec::smallvec![None; candidates.len()],
    };

    // Not in the RFC, and in every implementation: a route of our own is reachable without asking anybody.
    field.keep_best(Step::Local, |c| u8::from(!c.local));

    // RFC 9494 §4.3: the least preferred of all, whatever else is said of it.
    field.keep_best(Step::LongLivedStale, |c| {
        c.attributes.communities.contains(&Community::LLGR_STALE)
    });

    // §9.1.1, the degree of preference. Higher is better.
    field.keep_best(Step::LocalPref, |c| {
        std::cmp::Reverse(c.attributes.local_pref.unwrap_or(DEFAULT_LOCAL_PREF))
    });

    // a) the smallest number of AS numbers.
    field.keep_best(Step::AsPathLength, |c| c.attributes.as_path.length());

    // b) the lowest Origin number.
    field.keep_best(Step::Origin, |c| c.attributes.origin);

    // c) less-preferred MULTI_EXIT_DISC, among routes from the same neighbouring AS only.
    field.knock_out_by_med();

    // d) if at least one came by eBGP, those by iBGP go.
    field.keep_best(Step::PeerType, |c| c.peer_type);
    let equal = field.standing();

    // e) interior cost: see the head of the file.
    // f) the lowest BGP Identifier; RFC 4456 §9: the ORIGINATOR_ID stands for it.
    field.keep_best(Step::RouterId, |c| {
        c.attributes.originator_id.map_or(c.router_id, |id| id.to_bits())
    });

    // RFC 4456 §9: the shorter CLUSTER_LIST, between f and g.
    field.keep_best(Step::ClusterList, |c| c.attributes.cluster_list.len());

    // g) the lowest peer address. Addresses are unique, so one remains, or those of one peer that uses ADD-PATH.
    field.keep_best(Step::PeerAddress, |c| c.address);
    field.keep_best(Step::PathId, |c| c.path_id);

    let lost_at = field.lost_at;
    let mut order: SmallVec<[usize; 8]> = (0..candidates.len()).collect();
    // The later a path was knocked out the better it is; the best was never. Peer addresses make the order total.
    order.sort_by_key(|&i| {
        let lost = lost_at.get(i).copied().flatten();
        let address = candidates.get(i).map(|c| (c.address, c.path_id));
        (lost.is_some(), std::cmp::Reverse(lost), address)
    });
    Decision {
        order,
        lost_at,
        equal,
    }
}

struct Field<'a> {
    candidates: &'a [Candidate<'a>],
    lost_at: SmallVec<[Option<Step>; 8]>,
}

impl Field<'_> {
    fn standing(&self) -> usize {
        self.lost_at.iter().filter(|lost| lost.is_none()).count()
    }

    /// Knocks out whoever has a greater key than the least among those standing.
    fn keep_best<K: Ord>(&mut self, step: Step, key: impl Fn(&Candidate<'_>) -> K) {
        let standing = self
            .candidates
            .iter()
            .zip(&self.lost_at)
            .filter(|(_, lost)| lost.is_none());
        let Some(best) = standing.map(|(c, _)| key(c)).min() else {
            return;
        };
        for (candidate, lost) in self.candidates.iter().zip(&mut self.lost_at) {
            if lost.is_none() && key(candidate) > best {
                *lost = Some(step);
            }
        }
    }

    fn knock_out_by_med(&mut self) {
        let med = |c: &Candidate<'_>| c.attributes.med.unwrap_or(0);
        let beaten: SmallVec<[bool; 8]> = self
            .candidates
            .iter()
            .zip(&self.lost_at)
            .map(|(candidate, lost)| {
                let neighbor = candidate.attributes.as_path.neighbor_as();
                lost.is_none()
                    && self.candidates.iter().zip(&self.lost_at).any(|(other, gone)| {
                        gone.is_none()
                            && other.attributes.as_path.neighbor_as() == neighbor
                            && med(other) < med(candidate)
                    })
            })
            .collect();
        for (lost, beaten) in self.lost_at.iter_mut().zip(beaten) {
            if beaten {
                *lost = Some(Step::Med);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{AsPath, Origin};

    struct Given {
        attributes: PathAttributes,
        local: bool,
        peer_type: PeerType,
        router_id: u32,
        address: u8,
    }

    fn given(n: u8) -> Given {
        Given {
            attributes: PathAttributes {
                as_path: AsPath::sequence([65001, 65002]),
                ..Default::default()
            },
            local: false,
            peer_type: PeerType::Ebgp,
            router_id: u32::from(n),
            address: n,
        }
    }

    fn run(paths: &[Given]) -> Decision {
        let candidates: Vec<Candidate<'_>> = paths
            .iter()
            .map(|g| Candidate {
                attributes: &g.attributes,
                local: g.local,
                peer_type: g.peer_type,
                router_id: g.router_id,
                address: IpAddr::from([10, 0, 0, g.address]),
                path_id: 0,
            })
            .collect();
        decide(&candidates)
    }

    /// The first path wins over the second by exactly that step, whichever comes first.
    fn wins_by(step: Step, better: impl Fn(&mut Given), worse: impl Fn(&mut Given)) {
        for swapped in [false, true] {
            let (mut a, mut b) = (given(1), given(2));
            if swapped {
                // Later steps speak for the other one: the earlier step must outweigh them.
                (a.router_id, b.router_id, a.address, b.address) = (9, 1, 9, 1);
            }
            better(&mut a);
            worse(&mut b);
            let decision = run(&[a, b]);
            assert_eq!(decision.order[0], 0, "{step:?}");
            assert_eq!(decision.lost_at[..], [None, Some(step)]);
        }
    }

    #[test]
    fn every_step_decides_in_its_turn() {
        wins_by(
            Step::Local,
            |a| a.local = true,
            |b| b.attributes.local_pref = Some(900),
        );
        wins_by(
            Step::LongLivedStale,
            |_| {},
            |b| {
                b.attributes.local_pref = Some(900);
                b.attributes.add_community(Community::LLGR_STALE);
            },
        );
        wins_by(
            Step::LocalPref,
            |a| a.attributes.local_pref = Some(200),
            |b| b.attributes.as_path = AsPath::empty(),
        );
        wins_by(
            Step::AsPathLength,
            |a| (a.attributes.as_path, a.attributes.origin) = (AsPath::sequence([1]), Origin::Incomplete),
            |_| {},
        );
        wins_by(
            Step::Origin,
            |a| a.attributes.med = Some(9),
            |b| b.attributes.origin = Origin::Egp,
        );
        wins_by(
            Step::Med,
            |a| a.peer_type = PeerType::Ibgp,
            |b| b.attributes.med = Some(1),
        );
        wins_by(Step::PeerType, |_| {}, |b| b.peer_type = PeerType::Ibgp);
    }

    #[test]
    fn the_last_steps_break_every_tie() {
        let (mut a, mut b) = (given(2), given(1));
        (a.router_id, b.router_id) = (1, 2);
        assert_eq!(run(&[a, b]).lost_at[..], [None, Some(Step::RouterId)]);

        let (mut a, mut b) = (given(2), given(1));
        b.router_id = 1;
        a.attributes.originator_id = Some([0, 0, 0, 1].into());
        b.attributes.cluster_list = smallvec::smallvec![[1, 1, 1, 1].into()];
        assert_eq!(run(&[a, b]).lost_at[..], [None, Some(Step::ClusterList)]);

        let (mut a, b) = (given(2), given(1));
        a.router_id = 1;
        assert_eq!(run(&[a, b]).lost_at[..], [Some(Step::PeerAddress), None]);
    }

    #[test]
    fn local_pref_defaults_to_100_and_med_to_0() {
        let (mut a, mut b) = (given(1), given(2));
        a.attributes.local_pref = Some(100);
        b.attributes.med = Some(0);
        assert_eq!(run(&[a, b]).equal, 2);
    }

    /// RFC 4271 §9.1.2.2 c): MED of different neighbours is not compared, and the winner must not depend on the order.
    #[test]
    fn med_gives_the_same_winner_in_every_order() {
        let make = |n: u8, neighbor: u32, med: u32| {
            let mut g = given(n);
            g.attributes.as_path = AsPath::sequence([neighbor, 7]);
            g.attributes.med = Some(med);
            g
        };
        let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
        for order in orders {
            // Pairwise: 3 beats 2 by MED, 1 beats 3 by router id, 2 has no quarrel with 1 but a lower... a classic cycle.
            let mut paths = [
                Some(make(2, 100, 10)),
                Some(make(1, 100, 20)),
                Some(make(3, 200, 0)),
            ];
            let given: Vec<Given> = order.iter().map(|&i: &usize| paths[i].take().unwrap()).collect();
            let decision = run(&given);
            let winner = &given[decision.order[0]];
            assert_eq!(winner.address, 2, "{order:?}");
            assert_eq!(decision.equal, 2);
        }
    }

    #[test]
    fn equals_come_right_behind_the_best() {
        let mut paths = vec![given(5), given(3), given(4), given(1)];
        paths[3].attributes.local_pref = Some(50);
        let decision = run(&paths);
        assert_eq!(decision.order[..], [1, 2, 0, 3]);
        assert_eq!(decision.equal, 3);
        assert_eq!(run(&[]).equal, 0);
    }
}
