//! Gathering events into one run.
//!
//! An event that comes while all is quiet is not kept waiting: its run begins at once, and what follows during that run
//! and shortly after it is gathered. So a single change takes effect immediately, and a burst becomes two runs.

use std::time::{Duration, Instant};

/// Due at once for the first event after a quiet time. Else it waits for quiet, but not for ever: due when nothing has
/// come for `quiet`, or when the first event is `longest` old.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    quiet: Duration,
    longest: Duration,
    first: Option<Instant>,
    last: Option<Instant>,
    /// All that happened so far is cheap to carry out.
    light: bool,
    /// An event before this belongs to a burst.
    busy_until: Option<Instant>,
    /// The last run was so short that light ones need not be gathered.
    was_short: bool,
}

impl Window {
    /// A window in which nothing has happened.
    pub fn new(quiet: Duration, longest: Duration) -> Self {
        Self {
            quiet,
            longest,
            first: None,
            last: None,
            light: false,
            busy_until: None,
            was_short: true,
        }
    }

    /// Something happened.
    pub fn note(&mut self, now: Instant) {
        self.first.get_or_insert(now);
        self.last = Some(now);
        self.light = false;
    }

    /// Something happened that is cheap to carry out, and is carried out at once unless there is more to do.
    pub fn note_light(&mut self, now: Instant) {
        let light = self.light || self.first.is_none();
        self.note(now);
        self.light = light;
    }

    /// When the run is due; `None` while nothing has happened.
    pub fn due(&self) -> Option<Instant> {
        let is_first = self.busy_until.is_none_or(|until| self.first >= Some(until));
        if is_first || (self.light && self.was_short) {
            return self.first;
        }
        let quiet = self.last?.checked_add(self.quiet)?;
        let longest = self.first?.checked_add(self.longest)?;
        Some(quiet.min(longest))
    }

    /// The run begins; the window is empty again.
    pub fn close(&mut self) {
        self.first = None;
        self.last = None;
        self.light = false;
    }

    /// The run that began at `begun` has ended. The longer it took, the longer the next one gathers.
    pub fn done(&mut self, begun: Instant, now: Instant) {
        let took = now.saturating_duration_since(begun);
        self.was_short = took < self.quiet;
        self.busy_until = now.checked_add(took.max(self.quiet).min(self.longest));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn an_event_in_quiet_times_is_due_at_once() {
        let start = Instant::now();
        let mut window = Window::new(ms(10), ms(50));
        assert_eq!(window.due(), None);
        window.note(start);
        assert_eq!(window.due(), Some(start));
        window.close();
        window.done(start, start + ms(3));
        assert_eq!(window.due(), None);
        window.note(start + ms(13));
        assert_eq!(window.due(), Some(start + ms(13)));
    }

    #[test]
    fn light_events_do_not_wait_unless_runs_are_long_or_something_else_waits() {
        let start = Instant::now();
        let mut window = Window::new(ms(10), ms(50));
        window.done(start, start + ms(3));
        window.note_light(start + ms(4));
        assert_eq!(window.due(), Some(start + ms(4)));
        window.note(start + ms(5));
        assert_eq!(window.due(), Some(start + ms(15)));
        window.note_light(start + ms(6));
        assert_eq!(window.due(), Some(start + ms(16)));
        window.close();
        window.done(start, start + ms(40));
        window.note_light(start + ms(41));
        assert_eq!(window.due(), Some(start + ms(51)));
    }

    #[test]
    fn what_follows_a_run_waits_for_quiet_and_a_burst_for_no_longer_than_the_limit() {
        let start = Instant::now();
        let mut window = Window::new(ms(10), ms(50));
        window.done(start, start);
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
