//! The control packet (RFC 5880 §4.1): 24 bytes, and no option that we use.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The mandatory section.
const LENGTH: usize = 24;
const VERSION: u8 = 1;

const POLL: u8 = 0x20;
const FINAL: u8 = 0x10;
const CONTROL_PLANE_INDEPENDENT: u8 = 0x08;
const AUTHENTICATION: u8 = 0x04;
const DEMAND: u8 = 0x02;
const MULTIPOINT: u8 = 0x01;

/// RFC 5880 §4.1, Sta. The numbers are those on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Taken out of service by somebody; says nothing about the path.
    AdminDown,
    /// Nothing is heard, or the other side hears nothing.
    Down,
    /// The other side is heard, and does not know it yet.
    Init,
    /// Both hear each other.
    Up,
}

impl State {
    fn bits(self) -> u8 {
        match self {
            Self::AdminDown => 0,
            Self::Down => 1,
            Self::Init => 2,
            Self::Up => 3,
        }
    }

    fn from_bits(bits: u8) -> Self {
        match bits & 3 {
            0 => Self::AdminDown,
            1 => Self::Down,
            2 => Self::Init,
            _ => Self::Up,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::AdminDown => "AdminDown",
            Self::Down => "Down",
            Self::Init => "Init",
            Self::Up => "Up",
        })
    }
}

/// Why a session left Up, as each side tells the other (RFC 5880 §4.1, Diag).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Diagnostic(pub u8);

impl Diagnostic {
    /// Nothing to say.
    pub const NONE: Self = Self(0);
    /// Silence for the detection time.
    pub const DETECTION_TIME_EXPIRED: Self = Self(1);
    /// The other side said that it is down.
    pub const NEIGHBOR_SIGNALED_DOWN: Self = Self(3);
    /// Somebody took it out of service.
    pub const ADMINISTRATIVELY_DOWN: Self = Self(7);
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            0 => "no diagnostic",
            1 => "control detection time expired",
            2 => "echo function failed",
            3 => "neighbor signaled session down",
            4 => "forwarding plane reset",
            5 => "path down",
            6 => "concatenated path down",
            7 => "administratively down",
            8 => "reverse concatenated path down",
            other => return write!(f, "diagnostic {other}"),
        })
    }
}

/// A control packet. Intervals are whole microseconds, at most 71 minutes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Why the sender was last not Up.
    pub diagnostic: Diagnostic,
    /// The sender's state.
    pub state: State,
    /// The sender wants an answer at once.
    pub poll: bool,
    /// This is that answer.
    pub final_: bool,
    /// The sender's BFD goes on when its control plane is gone.
    pub control_plane_independent: bool,
    /// Once both are up, the sender does not want to hear anything unless it asks.
    pub demand: bool,
    /// Detection Time Multiplier.
    pub multiplier: u8,
    /// The sender's name for the session.
    pub my_discriminator: u32,
    /// The receiver's name for it; 0 while the sender does not know it.
    pub your_discriminator: u32,
    /// The sender does not want to send more often.
    pub desired_min_tx: Duration,
    /// The sender cannot receive more often; zero: does not want periodic packets at all.
    pub required_min_rx: Duration,
    /// Likewise for echo packets; zero: does not do echo.
    pub required_min_echo_rx: Duration,
}

/// Why a datagram is discarded (RFC 5880 §6.8.6). The sender is to blame; nobody tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// Shorter than it must be or than it says.
    #[error("too short")]
    Short,
    /// Not version 1.
    #[error("version {0}")]
    Version(u8),
    /// The session has no authentication.
    #[error("authentication, which nobody asked for")]
    Authentication,
    /// Reserved for point-to-multipoint.
    #[error("multipoint bit")]
    Multipoint,
    /// Detect Mult is zero.
    #[error("detection multiplier 0")]
    Multiplier,
    /// My Discriminator is zero.
    #[error("no discriminator")]
    NoDiscriminator,
    /// Your Discriminator is zero in a state that is reached only by hearing the other side.
    #[error("no discriminator of ours in state {0}")]
    UnknownYours(State),
}

fn micros(interval: Duration) -> u32 {
    u32::try_from(interval.as_micros()).unwrap_or(u32::MAX)
}

impl Packet {
    /// Reads a datagram, with all the checks of §6.8.6 that need no session.
    ///
    /// # Errors
    /// Why it is to be discarded.
    pub fn decode(bytes: &[u8]) -> Result<Self, PacketError> {
        let fixed: &[u8; LENGTH] = bytes.first_chunk().ok_or(PacketError::Short)?;
        let [first, second, multiplier, length, rest @ ..] = *fixed;
        if first >> 5 != VERSION {
            return Err(PacketError::Version(first >> 5));
        }
        if second & AUTHENTICATION != 0 {
            return Err(PacketError::Authentication);
        }
        if usize::from(length) < LENGTH || usize::from(length) > bytes.len() {
            return Err(PacketError::Short);
        }
        if multiplier == 0 {
            return Err(PacketError::Multiplier);
        }
        if second & MULTIPOINT != 0 {
            return Err(PacketError::Multipoint);
        }
        let (words, _) = rest.as_chunks::<4>();
        let mut words = words.iter().map(|word| u32::from_be_bytes(*word));
        let mut word = || words.next().ok_or(PacketError::Short);
        let (mine, yours) = (word()?, word()?);
        let mut interval = || Ok(Duration::from_micros(u64::from(word()?)));
        let packet = Self {
            diagnostic: Diagnostic(first & 0x1f),
            state: State::from_bits(second >> 6),
            poll: second & POLL != 0,
            final_: second & FINAL != 0,
            control_plane_independent: second & CONTROL_PLANE_INDEPENDENT != 0,
            demand: second & DEMAND != 0,
            multiplier,
            my_discriminator: mine,
            your_discriminator: yours,
            desired_min_tx: interval()?,
            required_min_rx: interval()?,
            required_min_echo_rx: interval()?,
        };
        if mine == 0 {
            return Err(PacketError::NoDiscriminator);
        }
        if yours == 0 && matches!(packet.state, State::Init | State::Up) {
            return Err(PacketError::UnknownYours(packet.state));
        }
        Ok(packet)
    }

    /// The datagram.
    pub fn encode(&self) -> [u8; LENGTH] {
        let flag = |set: bool, bit: u8| if set { bit } else { 0 };
        let flags = flag(self.poll, POLL)
            | flag(self.final_, FINAL)
            | flag(self.control_plane_independent, CONTROL_PLANE_INDEPENDENT)
            | flag(self.demand, DEMAND);
        let head = [
            VERSION << 5 | self.diagnostic.0 & 0x1f,
            self.state.bits() << 6 | flags,
            self.multiplier,
            24,
        ];
        let words = [
            u32::from_be_bytes(head),
            self.my_discriminator,
            self.your_discriminator,
            micros(self.desired_min_tx),
            micros(self.required_min_rx),
            micros(self.required_min_echo_rx),
        ];
        let mut out = [0; LENGTH];
        for (place, word) in out.as_chunks_mut::<4>().0.iter_mut().zip(words) {
            *place = word.to_be_bytes();
        }
        out
    }
}
