//! One session: the state machine of RFC 5880 §6.2 and the timers of §6.8.

use std::time::{Duration, Instant};

use super::{Diagnostic, Packet, State};
use crate::config::Bfd;

/// Nobody may be more talkative than this before a session is up (§6.8.3).
const SLOW: Duration = Duration::from_secs(1);

/// What a session looks like from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Ours.
    pub state: State,
    /// Why we were last not Up.
    pub diagnostic: Diagnostic,
    /// The other side's, as it said last; Down when it has said nothing.
    pub remote_state: State,
    /// Why it says that it was last not Up.
    pub remote_diagnostic: Diagnostic,
    /// Its BFD goes on without its control plane (the C bit).
    pub remote_independent: bool,
    /// How often we send, before jitter.
    pub transmit: Duration,
    /// After so much silence the path is taken for dead; none before anything was heard.
    pub detection: Option<Duration>,
    /// Whether the path goes over several hops.
    pub multihop: bool,
}

/// A Poll Sequence (§6.5): parameters of a session that is up change once the other side has said that it knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Poll {
    /// Nothing to ask.
    Idle,
    /// P is set until F comes.
    Running,
}

/// What the other side said last.
#[derive(Clone, Copy, Debug)]
struct Remote {
    state: State,
    diagnostic: Diagnostic,
    discriminator: u32,
    independent: bool,
    demand: bool,
    multiplier: u8,
    desired_min_tx: Duration,
    required_min_rx: Duration,
}

impl Remote {
    /// §6.8.1: before anything is heard.
    const UNHEARD: Self = Self {
        state: State::Down,
        diagnostic: Diagnostic::NONE,
        discriminator: 0,
        independent: false,
        demand: false,
        multiplier: 0,
        desired_min_tx: Duration::ZERO,
        required_min_rx: Duration::from_micros(1),
    };
}

/// See the module's contract.
#[derive(Debug)]
pub struct Session {
    config: Bfd,
    state: State,
    diagnostic: Diagnostic,
    discriminator: u32,
    remote: Remote,
    /// What is in force until a Poll Sequence ends (§6.8.3): a longer interval of ours is not used before the other side
    /// knows, nor a shorter one expected of it.
    active_tx: Duration,
    active_rx: Duration,
    poll: Poll,
    /// The next periodic packet.
    transmit_at: Option<Instant>,
    /// When silence has lasted too long.
    detect_at: Option<Instant>,
    /// To be sent now: periodic or on a change, and an answer to a Poll.
    due: bool,
    answer: bool,
    last_sent: Option<Instant>,
    random: u64,
    shown: Option<Status>,
}

impl Session {
    /// A session that is Down, and begins to send at once. `discriminator` is not zero and no other session's; `seed`
    /// drives the jitter.
    pub fn new(config: Bfd, discriminator: u32, seed: u64, now: Instant) -> Self {
        let mut session = Self {
            config,
            state: State::Down,
            diagnostic: Diagnostic::NONE,
            discriminator,
            remote: Remote::UNHEARD,
            active_tx: config.min_tx.max(SLOW),
            active_rx: config.min_rx,
            poll: Poll::Idle,
            transmit_at: None,
            detect_at: None,
            due: true,
            answer: false,
            last_sent: None,
            random: seed | 1,
            shown: None,
        };
        session.schedule(now);
        session
    }

    /// Our name for it.
    pub fn discriminator(&self) -> u32 {
        self.discriminator
    }

    /// As it is now.
    pub fn status(&self) -> Status {
        Status {
            state: self.state,
            diagnostic: self.diagnostic,
            remote_state: self.remote.state,
            remote_diagnostic: self.remote.diagnostic,
            remote_independent: self.remote.independent,
            transmit: self.interval(),
            detection: (self.remote.multiplier != 0).then(|| self.detection_time()),
            multihop: self.config.multihop,
        }
    }

    /// The status, when it is another than the last time this was asked.
    pub fn take_changed(&mut self) -> Option<Status> {
        let status = self.status();
        (self.shown.as_ref() != Some(&status)).then(|| {
            self.shown = Some(status.clone());
            status
        })
    }

    /// When [`Session::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        [self.transmit_at, self.detect_at].into_iter().flatten().min()
    }

    /// What to send now.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Packet> {
        // §6.5: an answer is never a question at the same time.
        let final_ = std::mem::take(&mut self.answer);
        if !final_ && !std::mem::take(&mut self.due) {
            return None;
        }
        if !final_ {
            self.last_sent = Some(now);
            self.transmit_at = None;
            self.schedule(now);
        }
        Some(Packet {
            diagnostic: self.diagnostic,
            state: self.state,
            poll: !final_ && self.poll == Poll::Running,
            final_,
            // We live in the process that speaks BGP.
            control_plane_independent: false,
            demand: false,
            multiplier: self.config.multiplier,
            my_discriminator: self.discriminator,
            your_discriminator: self.remote.discriminator,
            desired_min_tx: self.desired_tx(),
            required_min_rx: self.config.min_rx,
            required_min_echo_rx: Duration::ZERO,
        })
    }

    /// Takes in a packet of the other side (§6.8.6).
    pub fn handle_packet(&mut self, packet: &Packet, now: Instant) {
        let forgot_us = packet.your_discriminator == 0;
        if !forgot_us && packet.your_discriminator != self.discriminator {
            return;
        }
        self.remote = Remote {
            state: packet.state,
            diagnostic: packet.diagnostic,
            discriminator: packet.my_discriminator,
            independent: packet.control_plane_independent,
            demand: packet.demand,
            multiplier: packet.multiplier,
            desired_min_tx: packet.desired_min_tx,
            required_min_rx: packet.required_min_rx,
        };
        if packet.final_ && self.poll == Poll::Running {
            self.poll = Poll::Idle;
            self.active_tx = self.desired_tx();
            self.active_rx = self.config.min_rx;
        }
        if self.state == State::AdminDown {
            return;
        }
        let heard = match (self.state, packet.state) {
            // Why it was down last stays to be told (§6.8.1, bfd.LocalDiag).
            (State::Down, State::Down) => Some((State::Init, self.diagnostic)),
            (State::Down, State::Init) | (State::Init, State::Init | State::Up) => {
                Some((State::Up, self.diagnostic))
            }
            (State::Init | State::Up, State::AdminDown) | (State::Up, State::Down) => {
                Some((State::Down, Diagnostic::NEIGHBOR_SIGNALED_DOWN))
            }
            _ => None,
        };
        if let Some((state, diagnostic)) = heard {
            self.enter(state, diagnostic);
        }
        self.answer |= packet.poll;
        self.detect_at = Some(now + self.detection_time());
        self.schedule(now);
    }

    /// Fires what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        let due = |timer: Option<Instant>| timer.is_some_and(|at| at <= now);
        if due(self.detect_at) {
            self.detect_at = None;
            // §6.8.1: what it was is forgotten after a detection time without a packet; a Down remote stays heard of.
            self.remote = Remote {
                state: State::Down,
                discriminator: 0,
                demand: false,
                ..self.remote
            };
            if matches!(self.state, State::Init | State::Up) {
                self.enter(State::Down, Diagnostic::DETECTION_TIME_EXPIRED);
            }
        }
        if due(self.transmit_at) {
            self.transmit_at = None;
            self.due = self.periodic();
        }
        self.schedule(now);
    }

    /// Other intervals. The session goes on; where it is up, the other side is asked to take note (§6.8.3).
    pub fn reconfigure(&mut self, config: Bfd, now: Instant) {
        if self.config == config {
            return;
        }
        self.config = config;
        self.negotiate();
        self.due = true;
        self.schedule(now);
    }

    /// Takes the session out of service: the other side is told that this says nothing about the path (§6.8.16).
    pub fn admin_down(&mut self) {
        self.enter(State::AdminDown, Diagnostic::ADMINISTRATIVELY_DOWN);
    }

    fn enter(&mut self, state: State, diagnostic: Diagnostic) {
        if self.state == state {
            return;
        }
        self.state = state;
        self.diagnostic = diagnostic;
        self.poll = Poll::Idle;
        // The other side is to know at once: waiting for the next interval would add up to a second to every step.
        self.due = true;
        if state == State::Up {
            self.negotiate();
        } else {
            self.active_tx = self.desired_tx();
            self.active_rx = self.config.min_rx;
        }
    }

    /// What we say changes: a shorter interval of ours and a longer one of theirs hold at once, the others after the Poll.
    fn negotiate(&mut self) {
        let (tx, rx) = (self.desired_tx(), self.config.min_rx);
        if self.state == State::Up {
            self.active_tx = self.active_tx.min(tx);
            self.active_rx = self.active_rx.max(rx);
            self.poll = Poll::Running;
        } else {
            self.active_tx = tx;
            self.active_rx = rx;
        }
    }

    fn desired_tx(&self) -> Duration {
        match self.state {
            State::Up => self.config.min_tx,
            _ => self.config.min_tx.max(SLOW),
        }
    }

    /// How often we send (§6.8.2).
    fn interval(&self) -> Duration {
        self.active_tx.max(self.remote.required_min_rx)
    }

    /// §6.8.4, asynchronous mode.
    fn detection_time(&self) -> Duration {
        self.active_rx.max(self.remote.desired_min_tx) * u32::from(self.remote.multiplier)
    }

    /// Whether the other side wants to hear from us by itself (§6.8.7).
    fn periodic(&self) -> bool {
        let demands = self.remote.demand
            && (self.state, self.remote.state) == (State::Up, State::Up)
            && self.poll == Poll::Idle;
        !self.remote.required_min_rx.is_zero() && !demands
    }

    /// When the next periodic packet goes out: the interval less up to a quarter of it, and with a multiplier of 1 no later than
    /// nine tenths (§6.8.7).
    fn schedule(&mut self, now: Instant) {
        if !self.periodic() {
            self.transmit_at = None;
            return;
        }
        if self.due {
            // It is planned when that one is out.
            return;
        }
        let interval = self.interval();
        let since = self.last_sent.unwrap_or(now);
        let latest = since + interval;
        // One that is planned stays, unless the interval became shorter since.
        if self.transmit_at.is_none_or(|at| at > latest) {
            let most = if self.config.multiplier == 1 { 900 } else { 1000 };
            let draw = 750 + self.draw() % (most - 750);
            self.transmit_at = Some((since + interval * draw / 1000).max(now));
        }
    }

    fn draw(&mut self) -> u32 {
        // xorshift64*: no secret, only that sessions do not move in step.
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        (self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as u32
    }
}
