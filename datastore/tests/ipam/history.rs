//! What the holders of addresses saw, and whether it can be true.
//!
//! An address is a register that is free or held by one handle. A holder *surely* holds it from the moment it was told so
//! until the moment it asks to be rid of it, or dies. Taking takes effect somewhere between question and answer, and so
//! does giving back. Then there is an order of all these moments in which nobody takes what another one holds if and only
//! if no two sure holdings of an address overlap: in the order in which the holdings begin, let each taking take effect
//! as early as the one before permits. So that is what is looked for.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;

/// Nanoseconds of the machine's monotonic clock, the same for all processes.
pub(crate) type Moment = u64;

pub(crate) fn now() -> Moment {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("clock");
    let part = |n: i64| u64::try_from(n).expect("positive");
    part(time.tv_sec()) * 1_000_000_000 + part(time.tv_nsec())
}

/// One line of a process's account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The handle was told that this is its address.
    Took(String, IpAddr),
    /// It no longer uses its address, and is about to say so.
    Leaves(String),
    /// It was told that it holds nothing any more.
    Left(String),
    /// It was told that there was nothing to give back, though it held an address.
    Lost(String),
    /// The process is about to be killed: it no longer uses anything.
    Died,
}

/// As a line, for processes that tell it through a pipe.
impl std::fmt::Display for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Took(handle, address) => write!(f, "took {handle} {address}"),
            Self::Leaves(handle) => write!(f, "leaves {handle}"),
            Self::Left(handle) => write!(f, "left {handle}"),
            Self::Lost(handle) => write!(f, "lost {handle}"),
            Self::Died => write!(f, "died"),
        }
    }
}

impl Event {
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let words: Vec<&str> = line.split(' ').collect();
        Some(match words[..] {
            ["took", handle, address] => Self::Took(handle.to_owned(), address.parse().ok()?),
            ["leaves", handle] => Self::Leaves(handle.to_owned()),
            ["left", handle] => Self::Left(handle.to_owned()),
            ["lost", handle] => Self::Lost(handle.to_owned()),
            ["died"] => Self::Died,
            _ => return None,
        })
    }
}

/// The accounts of all processes.
#[derive(Default)]
pub(crate) struct History {
    events: Vec<(Moment, String, Event)>,
}

#[derive(Debug)]
struct Holding {
    handle: String,
    from: Moment,
    until: Moment,
}

impl History {
    pub(crate) fn add(&mut self, at: Moment, process: &str, event: Event) {
        self.events.push((at, process.to_owned(), event));
    }

    /// How many addresses were taken and given back.
    pub(crate) fn operations(&self) -> usize {
        let counts = |event: &Event| matches!(event, Event::Took(..) | Event::Left(_));
        self.events.iter().filter(|(_, _, event)| counts(event)).count()
    }

    /// The handles of a process that began with these, as far as it told.
    pub(crate) fn handles_of(&self, process: &str, inherited: &[String]) -> Vec<String> {
        let mut handles: BTreeSet<String> = inherited.iter().cloned().collect();
        for (_, _, event) in self.events.iter().filter(|(_, by, _)| by == process) {
            match event {
                Event::Took(handle, _) => drop(handles.insert(handle.clone())),
                Event::Leaves(handle) => drop(handles.remove(handle)),
                Event::Left(_) | Event::Lost(_) | Event::Died => {}
            }
        }
        handles.into_iter().collect()
    }

    /// What is held in the end, and everything that cannot be true, a sentence each.
    pub(crate) fn check(&self) -> (BTreeMap<IpAddr, String>, Vec<String>) {
        let mut wrong = Vec::new();
        let mut events: Vec<&(Moment, String, Event)> = self.events.iter().collect();
        events.sort_by_key(|(at, ..)| *at);
        let mut current: BTreeMap<(&str, &str), (IpAddr, Moment)> = BTreeMap::new();
        let mut holdings: BTreeMap<IpAddr, Vec<Holding>> = BTreeMap::new();
        let mut end = |handle: &str, (address, from): (IpAddr, Moment), until| {
            let handle = handle.to_owned();
            holdings
                .entry(address)
                .or_default()
                .push(Holding { handle, from, until });
        };
        let mut dead: BTreeSet<&str> = BTreeSet::new();
        for (at, process, event) in events {
            let process = process.as_str();
            // What it was told between the decision and its end, it did not use.
            if dead.contains(process) {
                continue;
            }
            match event {
                Event::Took(handle, address) => match current.get(&(process, handle)) {
                    Some((before, _)) if before != address => {
                        wrong.push(format!("{handle} holds {before} and is told {address}"));
                    }
                    Some(_) => {}
                    None => drop(current.insert((process, handle), (*address, *at))),
                },
                Event::Leaves(handle) => {
                    if let Some(holding) = current.remove(&(process, handle.as_str())) {
                        end(handle, holding, *at);
                    }
                }
                Event::Left(_) => {}
                Event::Lost(handle) => wrong.push(format!("what {handle} held was gone")),
                Event::Died => {
                    dead.insert(process);
                    let mine: Vec<_> = current.keys().filter(|(by, _)| *by == process).copied().collect();
                    for key in mine {
                        if let Some(holding) = current.remove(&key) {
                            end(key.1, holding, *at);
                        }
                    }
                }
            }
        }
        let mut held = BTreeMap::new();
        for ((_, handle), (address, from)) in current {
            end(handle, (address, from), Moment::MAX);
            held.insert(address, handle.to_owned());
        }
        for (address, holdings) in &mut holdings {
            holdings.sort_by_key(|holding| holding.from);
            // The latest end so far, not only the one before.
            let mut last: Option<&Holding> = None;
            for next in holdings.iter() {
                if let Some(last) = last.filter(|last| last.until > next.from) {
                    let mut text = format!(
                        "{address} was given to {} while {} held it",
                        next.handle, last.handle
                    );
                    let _ = write!(
                        text,
                        " (from {} to {}, from {})",
                        last.from, last.until, next.from
                    );
                    wrong.push(text);
                }
                if last.is_none_or(|last| last.until < next.until) {
                    last = Some(next);
                }
            }
        }
        (held, wrong)
    }
}

/// The checker finds what it is there to find.
pub(crate) fn the_checker_tells_truth_from_falsehood() {
    let address: IpAddr = "10.0.0.1".parse().expect("address");
    let other: IpAddr = "10.0.0.2".parse().expect("address");
    let took = |handle: &str| Event::Took(handle.to_owned(), address);
    let leaves = |handle: &str| Event::Leaves(handle.to_owned());
    let wrong = |events: &[(Moment, &str, Event)]| {
        let mut history = History::default();
        for (at, process, event) in events {
            let line = event.to_string();
            assert_eq!(Event::parse(&line).as_ref(), Some(event), "{line}");
            history.add(*at, process, event.clone());
        }
        let (held, wrong) = history.check();
        (held.len(), wrong.len())
    };
    assert_eq!(
        wrong(&[(1, "p", took("a")), (2, "p", leaves("a")), (3, "q", took("b"))]),
        (1, 0)
    );
    assert_eq!(
        wrong(&[(1, "p", took("a")), (3, "p", leaves("a")), (2, "q", took("b"))]),
        (1, 1)
    );
    assert_eq!(wrong(&[(1, "p", took("a")), (2, "q", took("b"))]), (1, 1));
    assert_eq!(
        wrong(&[(1, "p", took("a")), (2, "p", Event::Died), (3, "q", took("b"))]),
        (1, 0)
    );
    assert_eq!(
        wrong(&[(1, "p", took("a")), (2, "p", Event::Died), (3, "q", took("a"))]),
        (1, 0)
    );
    assert_eq!(
        wrong(&[(1, "p", took("a")), (2, "p", Event::Took("a".into(), other))]),
        (1, 1)
    );
    assert_eq!(
        wrong(&[(1, "p", took("a")), (2, "p", Event::Lost("a".into()))]),
        (1, 1)
    );
    let late = [(1, "p", Event::Died), (2, "p", took("a")), (3, "q", took("b"))];
    assert_eq!(wrong(&late), (1, 0));
    // One holding spans two others.
    let spans = [
        (1, "p", took("a")),
        (2, "q", took("b")),
        (3, "q", leaves("b")),
        (4, "r", took("c")),
        (5, "r", leaves("c")),
        (6, "p", leaves("a")),
    ];
    assert_eq!(wrong(&spans), (0, 2));
}
