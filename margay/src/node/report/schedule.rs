//! When a status is written: soon after something changed, and in any case once a period, but never faster than the
//! store of a large cluster can bear, nor all nodes at the same time.
//!
//! ```text
//!  written ├────── gap (10 s at most) ──────┤ a change may be written …           heartbeat ┤
//!          ├──────────────────── nine to ten tenths of the period ─────────────────────────┤
//! ```

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Two writes of one object are at least so far apart, unless its own period is shorter.
const GAP: Duration = Duration::from_secs(10);
/// What changes often changes again: this long is waited for it to settle.
const SETTLE: Duration = Duration::from_secs(1);
/// A write that failed is tried again after this, or a little later.
const RETRY: Duration = Duration::from_secs(5);

/// Why a status is to be written now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// Something may have changed: to be written if it has.
    Change,
    /// It is time: to be written in any case.
    Heartbeat,
}

#[derive(Clone, Copy, Debug)]
struct Turn {
    period: Duration,
    written: Option<Instant>,
    change: Option<Instant>,
    heartbeat: Instant,
}

/// See the head of the file. Time and the seed of the jitter come from outside.
#[derive(Debug)]
pub(super) struct Schedule {
    turns: BTreeMap<String, Turn>,
    random: u64,
}

impl Schedule {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            turns: BTreeMap::new(),
            random: seed | 1,
        }
    }

    /// What is to be reported, and how often. New ones are written soon, changed ones in their new rhythm.
    pub(super) fn set(&mut self, wanted: &BTreeMap<String, Duration>, now: Instant) {
        self.turns.retain(|name, _| wanted.contains_key(name));
        for (name, period) in wanted {
            let known = self.turns.get(name).copied();
            if known.is_some_and(|turn| turn.period == *period) {
                continue;
            }
            let first = now + self.up_to(SETTLE);
            self.turns.insert(
                name.clone(),
                Turn {
                    period: *period,
                    written: known.and_then(|turn| turn.written),
                    change: None,
                    heartbeat: first,
                },
            );
        }
    }

    /// Something may have changed.
    pub(super) fn stir(&mut self, now: Instant) {
        let mut turns = std::mem::take(&mut self.turns);
        for turn in turns.values_mut().filter(|turn| turn.change.is_none()) {
            let gap = GAP.min(turn.period);
            let free = turn.written.map(|at| at + gap + self.up_to(gap / 2));
            let settled = now + SETTLE + self.up_to(SETTLE);
            turn.change = Some(free.map_or(settled, |free| free.max(settled)));
        }
        self.turns = turns;
    }

    /// When [`Schedule::due`] has something next.
    pub(super) fn next(&self) -> Option<Instant> {
        let turns = self.turns.values();
        turns
            .map(|turn| turn.change.map_or(turn.heartbeat, |at| at.min(turn.heartbeat)))
            .min()
    }

    /// What is to be written now. Each is to be answered by [`Schedule::written`], [`Schedule::unchanged`] or
    /// [`Schedule::failed`].
    pub(super) fn due(&self, now: Instant) -> Vec<(String, Why)> {
        let why = |turn: &Turn| {
            if turn.heartbeat <= now {
                Some(Why::Heartbeat)
            } else {
                turn.change.filter(|at| *at <= now).map(|_| Why::Change)
            }
        };
        let turns = self.turns.iter();
        turns
            .filter_map(|(name, turn)| Some((name.clone(), why(turn)?)))
            .collect()
    }

    pub(super) fn written(&mut self, name: &str, now: Instant) {
        let jitter = self
            .turns
            .get(name)
            .map_or(Duration::ZERO, |turn| turn.period / 10);
        let early = self.up_to(jitter);
        if let Some(turn) = self.turns.get_mut(name) {
            turn.written = Some(now);
            turn.change = None;
            turn.heartbeat = now + turn.period.saturating_sub(early);
        }
    }

    pub(super) fn unchanged(&mut self, name: &str) {
        if let Some(turn) = self.turns.get_mut(name) {
            turn.change = None;
        }
    }

    pub(super) fn failed(&mut self, name: &str, now: Instant) {
        let again = now + RETRY + self.up_to(RETRY);
        if let Some(turn) = self.turns.get_mut(name) {
            turn.change = turn.change.map(|_| again);
            turn.heartbeat = turn.heartbeat.max(again);
        }
    }

    fn up_to(&mut self, most: Duration) -> Duration {
        // xorshift64: only that nodes do not move in step.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        most * u32::try_from(self.random >> 48).unwrap_or(0) / 65_536
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn wanted(period: u32) -> BTreeMap<String, Duration> {
        BTreeMap::from([("own".to_owned(), S * period)])
    }

    /// Follows the schedule for `time`, always writing, and stirring every `every`; gives the times of the writes.
    fn writes(
        schedule: &mut Schedule,
        start: Instant,
        time: Duration,
        every: Option<Duration>,
    ) -> Vec<Duration> {
        let mut times = Vec::new();
        let mut stirs = every.map(|every| start + every);
        loop {
            let next = schedule.next().into_iter().chain(stirs).min().unwrap();
            if next > start + time {
                return times;
            }
            if let (Some(at), Some(every)) = (stirs, every)
                && at <= next
            {
                schedule.stir(at);
                stirs = Some(at + every);
            }
            for (name, _) in schedule.due(next) {
                schedule.written(&name, next);
                times.push(next - start);
            }
        }
    }

    #[test]
    fn without_changes_there_is_one_write_a_period_and_not_at_the_same_time_everywhere() {
        let start = Instant::now();
        let mut firsts = std::collections::BTreeSet::new();
        for seed in 1..50 {
            let mut schedule = Schedule::new(seed * 0x9e37_79b9);
            schedule.set(&wanted(300), start);
            let times = writes(&mut schedule, start, 3_000 * S, None);
            assert!((10..=12).contains(&times.len()), "{times:?}");
            assert!(times[0] <= S, "the first comes soon");
            for pair in times.windows(2) {
                assert!((270 * S..=300 * S).contains(&(pair[1] - pair[0])), "{times:?}");
            }
            firsts.insert(times[1]);
        }
        assert!(firsts.len() > 40, "they spread");
    }

    #[test]
    fn a_storm_of_changes_is_written_every_ten_to_fifteen_seconds() {
        let start = Instant::now();
        let mut schedule = Schedule::new(7);
        schedule.set(&wanted(300), start);
        let times = writes(&mut schedule, start, 600 * S, Some(S / 5));
        for pair in times.windows(2) {
            let gap = pair[1] - pair[0];
            assert!((10 * S..=18 * S).contains(&gap), "{gap:?}");
        }
        assert!(times.len() > 30);
    }

    #[test]
    fn a_change_that_is_none_and_a_failure_do_not_move_the_heartbeat_forward() {
        let start = Instant::now();
        let mut schedule = Schedule::new(3);
        schedule.set(&wanted(60), start);
        let first = schedule.next().unwrap();
        schedule.written("own", first);
        schedule.stir(first + S);
        let change = schedule.next().unwrap();
        assert!(change >= first + 10 * S && change <= first + 16 * S);
        assert_eq!(schedule.due(change), [("own".to_owned(), Why::Change)]);
        schedule.unchanged("own");
        let beat = schedule.next().unwrap();
        assert!(beat >= first + 54 * S);
        assert_eq!(schedule.due(beat), [("own".to_owned(), Why::Heartbeat)]);
        schedule.failed("own", beat);
        let again = schedule.next().unwrap();
        assert!((beat + 5 * S..=beat + 10 * S).contains(&again));
        assert_eq!(schedule.due(again), [("own".to_owned(), Why::Heartbeat)]);
    }

    #[test]
    fn what_is_no_longer_asked_for_is_forgotten() {
        let start = Instant::now();
        let mut schedule = Schedule::new(3);
        schedule.set(&wanted(60), start);
        schedule.set(&BTreeMap::new(), start);
        assert_eq!(schedule.next(), None);
    }
}
