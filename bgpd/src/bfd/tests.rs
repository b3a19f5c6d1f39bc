//! Two sessions and a wire between them, in virtual time.

use std::time::{Duration, Instant};

use super::{Diagnostic, Packet, PacketError, Session, State};
use crate::config::Bfd;

const MS: Duration = Duration::from_millis(1);
const LATENCY: Duration = Duration::from_millis(2);

fn fast() -> Bfd {
    Bfd {
        min_rx: 100 * MS,
        min_tx: 100 * MS,
        multiplier: 3,
        ..Bfd::default()
    }
}

struct Pair {
    now: Instant,
    start: Instant,
    ends: [Session; 2],
    /// What each end is heard of by the other.
    cut: [bool; 2],
    flying: Vec<(Instant, usize, Packet)>,
    /// When, from whom, what: everything that was sent.
    sent: Vec<(Duration, usize, Packet)>,
}

impl Pair {
    fn new(configs: [Bfd; 2]) -> Self {
        let now = Instant::now();
        let [one, two] = configs;
        Self {
            now,
            start: now,
            ends: [Session::new(one, 11, 1, now), Session::new(two, 22, 2, now)],
            cut: [false; 2],
            flying: Vec::new(),
            sent: Vec::new(),
        }
    }

    fn up(configs: [Bfd; 2]) -> Self {
        let mut pair = Self::new(configs);
        pair.run(5000 * MS);
        assert_eq!(pair.states(), [State::Up, State::Up]);
        pair.sent.clear();
        pair
    }

    fn states(&self) -> [State; 2] {
        self.ends.each_ref().map(|end| end.status().state)
    }

    /// Runs until nothing more happens within the time.
    fn run(&mut self, time: Duration) {
        let until = self.now + time;
        loop {
            for n in [0, 1] {
                while let Some(packet) = self.ends[n].poll_transmit(self.now) {
                    self.sent.push((self.now - self.start, n, packet));
                    if !self.cut[n] {
                        let again = Packet::decode(&packet.encode()).unwrap();
                        assert_eq!(again, packet);
                        self.flying.push((self.now + LATENCY, 1 - n, again));
                    }
                }
            }
            let timers = self.ends.iter().filter_map(Session::poll_timeout);
            let next = timers.chain(self.flying.iter().map(|(at, ..)| *at)).min();
            let Some(next) = next.filter(|next| *next <= until) else {
                self.now = until;
                return;
            };
            self.now = next.max(self.now);
            let (due, later) = std::mem::take(&mut self.flying)
                .into_iter()
                .partition(|(at, ..)| *at <= self.now);
            self.flying = later;
            let due: Vec<(Instant, usize, Packet)> = due;
            for (_, to, packet) in due {
                self.ends[to].handle_packet(&packet, self.now);
            }
            for end in &mut self.ends {
                end.handle_timeout(self.now);
            }
        }
    }

    /// Gaps between the packets of one end, answers to polls aside.
    fn gaps(&self, of: usize) -> Vec<Duration> {
        let times: Vec<Duration> = self
            .sent
            .iter()
            .filter(|(_, n, packet)| *n == of && !packet.final_)
            .map(|(at, ..)| *at)
            .collect();
        times.windows(2).map(|pair| pair[1] - pair[0]).collect()
    }
}

/// RFC 5880 §6.2, §6.8.3: slow until up, then at the interval that both agreed on, with jitter.
#[test]
fn two_ends_come_up_and_go_over_to_the_agreed_interval() {
    let slow_reader = Bfd {
        min_rx: 200 * MS,
        ..fast()
    };
    let mut pair = Pair::new([fast(), slow_reader]);
    pair.run(20 * MS);
    assert_eq!(pair.states(), [State::Up, State::Up], "no interval is waited for");
    pair.run(3000 * MS);
    pair.sent.clear();
    pair.run(10_000 * MS);
    let gaps = pair.gaps(0);
    assert!((50..=67).contains(&gaps.len()), "{}", gaps.len());
    assert!(
        gaps.iter().all(|gap| (150 * MS..=200 * MS).contains(gap)),
        "{gaps:?}"
    );
    assert!(gaps.iter().max() > gaps.iter().min(), "no jitter");
    let gaps = pair.gaps(1);
    assert!(
        gaps.iter().all(|gap| (75 * MS..=100 * MS).contains(gap)),
        "{gaps:?}"
    );
    assert_eq!(pair.ends[0].status().detection, Some(300 * MS));
    assert_eq!(pair.ends[1].status().detection, Some(600 * MS));
    assert!(
        pair.sent.iter().all(|(_, _, packet)| !packet.poll),
        "the poll has ended"
    );
}

/// §6.8.4.
#[test]
fn silence_for_the_detection_time_is_down_and_the_other_side_is_told() {
    let mut pair = Pair::up([fast(), fast()]);
    pair.cut[1] = true;
    pair.run(290 * MS);
    // The last packet was up to an interval ago.
    let before = pair.now;
    while pair.states()[0] == State::Up {
        pair.run(MS);
        assert!(pair.now < before + 20 * MS);
    }
    assert_eq!(
        pair.ends[0].status().diagnostic,
        Diagnostic::DETECTION_TIME_EXPIRED
    );
    pair.run(3 * MS);
    let far = pair.ends[1].status();
    assert_eq!(
        (far.state, far.diagnostic),
        (State::Down, Diagnostic::NEIGHBOR_SIGNALED_DOWN)
    );
    assert_eq!(far.remote_diagnostic, Diagnostic::DETECTION_TIME_EXPIRED);
    pair.sent.clear();
    pair.run(5000 * MS);
    assert!(pair.gaps(0).iter().all(|gap| *gap >= 750 * MS), "slow while down");
    pair.cut[1] = false;
    pair.run(1100 * MS);
    assert_eq!(pair.states(), [State::Up, State::Up]);
    assert_eq!(
        pair.ends[0].status().diagnostic,
        Diagnostic::DETECTION_TIME_EXPIRED,
        "why it was down last is still told"
    );
}

/// §6.8.3, §6.5: a longer interval of ours is not used, and a shorter one of theirs not expected, before they know.
#[test]
fn new_intervals_are_polled_for_and_the_session_stays_up() {
    let mut pair = Pair::up([fast(), fast()]);
    let now = pair.now;
    let slower = Bfd {
        min_tx: 400 * MS,
        min_rx: 50 * MS,
        ..fast()
    };
    pair.ends[0].reconfigure(slower, now);
    assert_eq!(pair.ends[0].status().transmit, 100 * MS);
    assert_eq!(pair.ends[0].status().detection, Some(300 * MS));
    pair.run(3 * LATENCY);
    assert!(
        pair.sent
            .iter()
            .any(|(_, n, packet)| (*n, packet.poll) == (0, true))
    );
    assert!(
        pair.sent
            .iter()
            .any(|(_, n, packet)| (*n, packet.final_) == (1, true))
    );
    assert_eq!(pair.ends[0].status().transmit, 400 * MS);
    assert_eq!(pair.ends[1].status().detection, Some(1200 * MS));
    pair.run(5000 * MS);
    assert_eq!(pair.states(), [State::Up, State::Up]);
    let [one, two] = &pair.ends;
    assert_eq!(
        (one.status().diagnostic, two.status().diagnostic),
        (Diagnostic::NONE, Diagnostic::NONE)
    );
}

/// §6.8.16: taken out of service, which is no failure of the path.
#[test]
fn an_end_taken_out_of_service_says_so() {
    let mut pair = Pair::up([fast(), fast()]);
    pair.ends[0].admin_down();
    pair.run(3 * LATENCY);
    let far = pair.ends[1].status();
    assert_eq!((far.state, far.remote_state), (State::Down, State::AdminDown));
    assert_eq!(far.remote_diagnostic, Diagnostic::ADMINISTRATIVELY_DOWN);
    pair.run(5000 * MS);
    assert_eq!(pair.states(), [State::AdminDown, State::Down]);
}

/// §6.8.6: the other side restarted, and comes with a new name and without ours.
#[test]
fn a_session_that_the_other_side_forgot_is_down_and_comes_up_anew() {
    let mut pair = Pair::up([fast(), fast()]);
    pair.ends[1] = Session::new(fast(), 33, 3, pair.now);
    pair.run(LATENCY + MS);
    let status = pair.ends[0].status();
    assert_eq!(
        (status.state, status.diagnostic),
        (State::Down, Diagnostic::NEIGHBOR_SIGNALED_DOWN)
    );
    pair.run(20 * MS);
    assert_eq!(pair.states(), [State::Up, State::Up]);
}

/// §6.8.7: with a multiplier of 1 one packet must arrive in each detection time.
#[test]
fn with_a_multiplier_of_one_the_jitter_leaves_room() {
    let once = Bfd {
        multiplier: 1,
        ..fast()
    };
    let mut pair = Pair::up([once, fast()]);
    pair.run(10_000 * MS);
    let gaps = pair.gaps(0);
    assert!(
        gaps.iter().all(|gap| (75 * MS..=90 * MS).contains(gap)),
        "{gaps:?}"
    );
    assert_eq!(pair.states(), [State::Up, State::Up]);
}

/// §6.8.7: zero means "send nothing by yourself", and in demand mode nothing is sent once both are up.
#[test]
fn nothing_periodic_goes_to_those_who_do_not_want_it() {
    let now = Instant::now();
    for (required_min_rx, demand) in [(Duration::ZERO, false), (100 * MS, true)] {
        let mut session = Session::new(fast(), 11, 1, now);
        assert!(session.poll_transmit(now).is_some());
        let packet = |state, final_| Packet {
            diagnostic: Diagnostic::NONE,
            state,
            poll: false,
            final_,
            control_plane_independent: true,
            demand,
            multiplier: 3,
            my_discriminator: 7,
            your_discriminator: 11,
            desired_min_tx: 100 * MS,
            required_min_rx,
            required_min_echo_rx: Duration::ZERO,
        };
        session.handle_packet(&packet(State::Init, false), now);
        assert!(session.poll_transmit(now).is_some_and(|packet| packet.poll));
        session.handle_packet(&packet(State::Up, true), now);
        assert!(session.status().remote_independent);
        // All that is left is to notice its silence.
        assert_eq!(session.poll_timeout(), Some(now + 300 * MS));
    }
}

/// §6.8.6: a packet that names another session changes nothing.
#[test]
fn a_packet_for_somebody_else_is_ignored() {
    let mut pair = Pair::up([fast(), fast()]);
    let (_, _, packet) = {
        pair.run(200 * MS);
        pair.sent.iter().rfind(|(_, n, _)| *n == 1).copied().unwrap()
    };
    let before = pair.ends[0].status();
    let stranger = Packet {
        your_discriminator: 12,
        state: State::Down,
        ..packet
    };
    pair.ends[0].handle_packet(&stranger, pair.now);
    assert_eq!(pair.ends[0].status(), before);
}

/// §6.8.6, check by check, and no length of rubbish panics.
#[test]
fn what_is_no_control_packet_is_discarded_with_the_reason() {
    let good = {
        let mut session = Session::new(fast(), 0x0102_0304, 1, Instant::now());
        session.poll_transmit(Instant::now()).unwrap().encode()
    };
    assert_eq!(good[..4], [0x20, 0x40, 3, 24]);
    assert_eq!(good[4..12], [1, 2, 3, 4, 0, 0, 0, 0]);
    assert_eq!(good[12..], [0, 15, 66, 64, 0, 1, 134, 160, 0, 0, 0, 0]);
    let with = |at: usize, value: u8| {
        let mut bytes = good;
        bytes[at] = value;
        Packet::decode(&bytes)
    };
    assert_eq!(with(0, 0x40), Err(PacketError::Version(2)));
    assert_eq!(with(1, 0x44), Err(PacketError::Authentication));
    assert_eq!(with(1, 0x41), Err(PacketError::Multipoint));
    assert_eq!(with(1, 0xc0), Err(PacketError::UnknownYours(State::Up)));
    assert_eq!(with(2, 0), Err(PacketError::Multiplier));
    assert_eq!(with(3, 25), Err(PacketError::Short));
    assert_eq!(with(3, 23), Err(PacketError::Short));
    let mut nobody = good;
    nobody[4..8].fill(0);
    assert_eq!(Packet::decode(&nobody), Err(PacketError::NoDiscriminator));
    for length in 0..good.len() {
        assert_eq!(Packet::decode(&good[..length]), Err(PacketError::Short));
    }
    let mut longer = good.to_vec();
    longer.extend([0xff; 9]);
    assert!(
        Packet::decode(&longer).is_ok(),
        "what follows is not ours to read"
    );
}
