//! Gathering events into one run.

use std::time::{Duration, Instant};

/// Waits for quiet, but not for ever: due when nothing has come for `quiet`, or when the first event is `longest` old.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    quiet: Duration,
    longest: Duration,
    first: Option<Instant>,
    last: Option<Instant>,
}

impl Window {
    /// A window in which nothing has happened.
    pub fn new(quiet: Duration, longest: Duration) -> Self {
        Self {
            quiet,
            longest,
            first: None,
            last: None,
        }
    }

    /// Something happened.
    pub fn note(&mut self, now: Instant) {
        self.first.get_or_insert(now);
        self.last = Some(now);
    }

    /// When the run is due; `None` while nothing has happened.
    pub fn due(&self) -> Option<Instant> {
        let quiet = self.last?.checked_add(self.quiet)?;
        let longest = self.first?.checked_add(self.longest)?;
        Some(quiet.min(longest))
    }

    /// The run begins; the window is empty again.
    pub fn close(&mut self) {
        self.first = None;
        self.last = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn a_single_event_waits_for_quiet_and_a_burst_for_no_longer_than_the_limit() {
        let start = Instant::now();
        let mut window = Window::new(ms(10), ms(50));
        assert_eq!(window.due(), None);
        window.note(start);
        assert_eq!(window.due(), Some(start + ms(10)));
        for step in 1..100 {
            window.note(start + ms(step));
        }
        assert_eq!(window.due(), Some(start + ms(50)));
        window.close();
        assert_eq!(window.due(), None);
    }
}
