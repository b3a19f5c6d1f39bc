//! Which endpoint to ask next, and how long to wait before a lost watch is opened again. Pure: time and random numbers
//! are arguments.

use std::time::{Duration, Instant};

/// An endpoint that failed is asked last for this long, doubling with every further failure.
const REST: Duration = Duration::from_millis(500);
const LONGEST_REST: Duration = Duration::from_secs(30);

/// Waits between rounds of attempts to open a watch again.
const WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// A watch that lived this long was a good one.
const GOOD_LIFE: Duration = Duration::from_secs(5);

/// For this long a lost watch is nobody's concern. Then its reader is told.
const PATIENCE: Duration = Duration::from_secs(10);

/// The endpoints of a cluster, best first.
#[derive(Clone, Debug)]
pub(super) struct Rotation {
    endpoints: Vec<Endpoint>,
    preferred: usize,
}

#[derive(Clone, Debug, Default)]
struct Endpoint {
    failures: u32,
    rests_until: Option<Instant>,
}

impl Rotation {
    /// `random` chooses where to begin, so that many nodes do not all ask the same member.
    pub(super) fn new(count: usize, random: u64) -> Self {
        let preferred = usize::try_from(random.checked_rem(count as u64).unwrap_or(0)).unwrap_or(0);
        Self {
            endpoints: vec![Endpoint::default(); count],
            preferred,
        }
    }

    /// All endpoints: the one that last worked, the others in turn, those that rest at the end, soonest ready first.
    pub(super) fn order(&self, now: Instant) -> Vec<usize> {
        let count = self.endpoints.len();
        let mut order: Vec<usize> = (0..count).map(|n| (self.preferred + n) % count).collect();
        let rest = |index: &usize| {
            let endpoint = self.endpoints.get(*index);
            endpoint.and_then(|e| e.rests_until).filter(|until| *until > now)
        };
        order.sort_by_key(rest);
        order
    }

    pub(super) fn worked(&mut self, index: usize) {
        if let Some(endpoint) = self.endpoints.get_mut(index) {
            *endpoint = Endpoint::default();
            self.preferred = index;
        }
    }

    pub(super) fn failed(&mut self, index: usize, now: Instant, random: u64) {
        if let Some(endpoint) = self.endpoints.get_mut(index) {
            let rest = REST * (1 << endpoint.failures.min(10));
            endpoint.failures = endpoint.failures.saturating_add(1);
            endpoint.rests_until = Some(now + jitter(rest.min(LONGEST_REST), random));
        }
    }
}

/// One watch's way back.
#[derive(Clone, Debug, Default)]
pub(super) struct Retry {
    since: Option<Instant>,
    failures: u32,
}

impl Retry {
    /// A connection ended that had been opened at `opened`, or could not be opened. Returns how long to wait before the
    /// next attempt; `None`: long enough, tell the reader. The first attempts follow at once, one for each endpoint.
    pub(super) fn lost(
        &mut self,
        opened: Option<Instant>,
        now: Instant,
        endpoints: usize,
        random: u64,
    ) -> Option<Duration> {
        if opened.is_some_and(|opened| now.saturating_duration_since(opened) >= GOOD_LIFE) {
            *self = Self::default();
        }
        let since = *self.since.get_or_insert(now);
        if now.saturating_duration_since(since) >= PATIENCE {
            return None;
        }
        let failures = self.failures;
        self.failures += 1;
        let at_once = u32::try_from(endpoints).unwrap_or(u32::MAX);
        if failures < at_once {
            return Some(Duration::ZERO);
        }
        let doubled = WAIT * (1 << (failures - at_once).min(10));
        Some(jitter(doubled.min(LONGEST_WAIT), random))
    }
}

/// Between half of a wait and the whole.
fn jitter(whole: Duration, random: u64) -> Duration {
    let half = whole / 2;
    let micros = u64::try_from(half.as_micros()).unwrap_or(u64::MAX);
    half + Duration::from_micros(random.checked_rem(micros.saturating_add(1)).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_that_works_is_kept_and_one_that_fails_comes_last_for_a_while() {
        let now = Instant::now();
        let mut rotation = Rotation::new(3, 4);
        assert_eq!(rotation.order(now), [1, 2, 0], "begins where chance says");
        rotation.failed(1, now, 0);
        assert_eq!(rotation.order(now), [2, 0, 1]);
        rotation.worked(2);
        rotation.failed(0, now, 0);
        rotation.failed(0, now, 0);
        assert_eq!(
            rotation.order(now),
            [2, 1, 0],
            "the longer it fails, the later it comes"
        );
        let later = now + LONGEST_REST;
        assert_eq!(rotation.order(later), [2, 0, 1], "rested");
        rotation.failed(2, later, 0);
        assert_eq!(rotation.order(later).last(), Some(&2));
        assert_eq!(rotation.order(later).len(), 3, "nobody is left out for good");
        assert!(Rotation::new(0, 9).order(now).is_empty());
    }

    #[test]
    fn rest_is_bounded_whatever_happens() {
        let now = Instant::now();
        let mut rotation = Rotation::new(2, 0);
        for random in 0..100 {
            rotation.failed(0, now, random * 7919);
        }
        assert_eq!(rotation.order(now), [1, 0]);
        assert_eq!(rotation.order(now + LONGEST_REST), [0, 1]);
    }

    #[test]
    fn a_lost_watch_asks_every_endpoint_at_once_then_waits_longer_and_longer_and_then_says_so() {
        let start = Instant::now();
        let mut retry = Retry::default();
        let mut now = start;
        let mut waits = Vec::new();
        while let Some(wait) = retry.lost(None, now, 2, u64::MAX) {
            waits.push(wait);
            now += wait;
        }
        assert_eq!(waits[..2], [Duration::ZERO; 2]);
        assert!(
            waits[2..].windows(2).all(|pair| pair[1] >= pair[0] / 2),
            "{waits:?}"
        );
        assert!(
            waits[2..].iter().all(|w| *w >= WAIT / 2 && *w <= LONGEST_WAIT),
            "{waits:?}"
        );
        let lasted = now - start;
        assert!(
            lasted >= PATIENCE && lasted <= PATIENCE + LONGEST_WAIT,
            "{lasted:?}"
        );
        assert!(waits.len() < 20, "{} attempts", waits.len());
    }

    #[test]
    fn a_watch_that_is_cut_at_once_every_time_does_not_spin() {
        let mut now = Instant::now();
        let mut retry = Retry::default();
        let mut attempts = 0;
        let end = now + PATIENCE;
        while now < end {
            let Some(wait) = retry.lost(Some(now), now, 1, 1) else {
                break;
            };
            now += wait;
            attempts += 1;
        }
        assert!(attempts < 20, "{attempts}");
        // One that lived is forgiven.
        assert_eq!(retry.lost(Some(now), now + GOOD_LIFE, 1, 0), Some(Duration::ZERO));
    }

    #[test]
    fn jitter_stays_between_half_and_whole() {
        let whole = Duration::from_millis(100);
        for random in [0, 1, 49_999, 50_000, 50_001, u64::MAX] {
            let wait = jitter(whole, random);
            assert!(wait >= whole / 2 && wait <= whole, "{wait:?}");
        }
        assert_eq!(jitter(Duration::ZERO, 5), Duration::ZERO);
    }
}
