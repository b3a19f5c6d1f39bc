//! UPDATE (RFC 4271 §4.3) as the rest of the speaker sees it.

use smallvec::SmallVec;

use super::attributes::{NextHop, PathAttributes, type_code};
use super::family::{AfiSafi, Family, FamilyContext};
use super::header::{MAX_EXTENDED_MESSAGE_LENGTH, MAX_MESSAGE_LENGTH};
use super::notification::Notification;
use super::prefix::PrefixIter;

/// What a decoder has to know of the session. Build it when both OPENs are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DecodeContext {
    /// Both sides have the Four-octet AS capability (RFC 6793).
    pub four_octet_as: bool,
    /// The peer is in another AS: LOCAL_PREF, ORIGINATOR_ID, CLUSTER_LIST and AIGP from it are discarded.
    pub ebgp: bool,
    /// Both sides have the Extended Message capability (RFC 8654).
    pub extended_messages: bool,
    /// Paths with an AS_SET are taken. RFC 9774 wants them withdrawn, which is the default.
    pub allow_as_set: bool,
    /// A path with more hops than this is treated as withdrawn. It protects everything that later walks
    /// paths: real ones stay under 100.
    pub max_as_path_hops: usize,
    /// IPv4 unicast, in the direction of receiving.
    pub ipv4: FamilyContext,
    /// IPv6 unicast, in the direction of receiving.
    pub ipv6: FamilyContext,
}

impl DecodeContext {
    /// Default limit of hops in an AS_PATH.
    pub const MAX_AS_PATH_HOPS: usize = 1000;

    /// What was negotiated for a family.
    pub fn family(&self, family: Family) -> FamilyContext {
        match family {
            Family::Ipv4Unicast => self.ipv4,
            Family::Ipv6Unicast => self.ipv6,
        }
    }

    /// The longest message that may come: the second argument of [`frame`](super::frame).
    pub fn max_message_length(&self) -> usize {
        if self.extended_messages {
            MAX_EXTENDED_MESSAGE_LENGTH
        } else {
            MAX_MESSAGE_LENGTH
        }
    }
}

impl Default for DecodeContext {
    /// An external four-octet session for IPv4 unicast without extensions. Also right before OPEN.
    fn default() -> Self {
        DecodeContext {
            four_octet_as: true,
            ebgp: true,
            extended_messages: false,
            allow_as_set: false,
            max_as_path_hops: Self::MAX_AS_PATH_HOPS,
            ipv4: FamilyContext {
                negotiated: true,
                ..FamilyContext::default()
            },
            ipv6: FamilyContext::default(),
        }
    }
}

/// How much of an UPDATE was believed (RFC 7606 §2), weakest first. A session reset is not among them: that
/// is the `Err` of decoding.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Disposition {
    /// All of it.
    #[default]
    Accept,
    /// All but some attributes, which are not in [`Update::attributes`].
    AttributeDiscard,
    /// The prefixes only: everything announced is to be withdrawn.
    TreatAsWithdraw,
    /// The list of this family cannot be read: withdraw all that the peer announced in it and ignore the
    /// family from now on, or end the session with the notification (RFC 4760 §7 allows both). The rest of
    /// the message is as in [`Disposition::TreatAsWithdraw`].
    AfiSafiDisable {
        /// The family to be disabled.
        family: Family,
        /// What to send when the session shall end instead.
        notification: Box<Notification>,
    },
}

impl Disposition {
    pub(super) fn severity(&self) -> u8 {
        match self {
            Disposition::Accept => 0,
            Disposition::AttributeDiscard => 1,
            Disposition::TreatAsWithdraw => 2,
            Disposition::AfiSafiDisable { .. } => 3,
        }
    }
}

/// What is wrong with an attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Fault {
    /// Optional or Transitive contradicts the type.
    #[error("flags contradict the type")]
    Flags,
    /// The length does not fit the type.
    #[error("bad length")]
    Length,
    /// The value is not one of those defined.
    #[error("bad value")]
    Value,
    /// A second one of the same type.
    #[error("came twice")]
    Duplicate,
    /// A type that is well-known to nobody.
    #[error("unknown well-known attribute")]
    UnknownWellKnown,
    /// Mandatory, but not there.
    #[error("missing")]
    Missing,
    /// Not from this kind of peer.
    #[error("not allowed on this kind of session")]
    NotAllowed,
    /// AS 0 (RFC 7607).
    #[error("AS 0")]
    AsZero,
    /// A path with a set (RFC 9774).
    #[error("AS_SET")]
    AsSet,
    /// More hops than the limit.
    #[error("too many hops")]
    TooLong,
    /// The attributes end in the middle of one (RFC 7606 §4).
    #[error("cut short")]
    Truncated,
}

/// One finding, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[error("{} (type {code}): {fault}", name(*.code))]
pub struct AttributeError {
    /// Type code of the attribute.
    pub code: u8,
    /// What is wrong with it.
    pub fault: Fault,
}

fn name(code: u8) -> &'static str {
    match code {
        type_code::ORIGIN => "ORIGIN",
        type_code::AS_PATH => "AS_PATH",
        type_code::NEXT_HOP => "NEXT_HOP",
        type_code::MULTI_EXIT_DISC => "MULTI_EXIT_DISC",
        type_code::LOCAL_PREF => "LOCAL_PREF",
        type_code::ATOMIC_AGGREGATE => "ATOMIC_AGGREGATE",
        type_code::AGGREGATOR => "AGGREGATOR",
        type_code::COMMUNITIES => "COMMUNITIES",
        type_code::ORIGINATOR_ID => "ORIGINATOR_ID",
        type_code::CLUSTER_LIST => "CLUSTER_LIST",
        type_code::MP_REACH_NLRI => "MP_REACH_NLRI",
        type_code::MP_UNREACH_NLRI => "MP_UNREACH_NLRI",
        type_code::EXTENDED_COMMUNITIES => "EXTENDED_COMMUNITIES",
        type_code::AS4_PATH => "AS4_PATH",
        type_code::AS4_AGGREGATOR => "AS4_AGGREGATOR",
        type_code::AIGP => "AIGP",
        type_code::LARGE_COMMUNITY => "LARGE_COMMUNITY",
        type_code::ONLY_TO_CUSTOMER => "ONLY_TO_CUSTOMER",
        _ => "attribute",
    }
}

/// Prefixes that became reachable through one next hop. The other attributes are those of the UPDATE.
#[derive(Clone, Debug)]
pub struct Announcement<'a> {
    /// Where packets go. Differs from `attributes.next_hop` only in the rare UPDATE that announces prefixes
    /// both in its NLRI field and in MP_REACH_NLRI; use [`PathAttributes::with_next_hop`] there.
    pub next_hop: NextHop,
    /// The prefixes, all of one family.
    pub prefixes: PrefixIter<'a>,
}

/// A decoded UPDATE.
#[derive(Clone, Debug)]
pub struct Update<'a> {
    /// What the announced prefixes share. Meaningful only where [`announcements`](Self::announcements)
    /// yields something; default otherwise.
    pub attributes: PathAttributes,
    /// How much was believed.
    pub disposition: Disposition,
    /// What was found wrong, the first few of it.
    pub errors: SmallVec<[AttributeError; 2]>,
    /// A family that was not negotiated came along and was ignored.
    pub ignored_family: Option<AfiSafi>,
    pub(super) withdrawn: PrefixIter<'a>,
    pub(super) nlri: PrefixIter<'a>,
    pub(super) nlri_next_hop: Option<NextHop>,
    pub(super) mp_reach: Option<Announcement<'a>>,
    pub(super) mp_unreach: Option<PrefixIter<'a>>,
    pub(super) end_of_rib: Option<Family>,
}

impl<'a> Update<'a> {
    /// Decodes the body of a message (what follows the header).
    ///
    /// # Errors
    /// The UPDATE Message Error to send when the session cannot be saved: the lists of prefixes cannot be
    /// located, or RFC 7606 demands it.
    pub fn decode(body: &'a [u8], context: &DecodeContext) -> Result<Self, Notification> {
        super::decode::update(body, context)
    }

    /// The lists of prefixes to learn, at most one per field. Empty when the message is treated as withdraw.
    pub fn announcements(&self) -> impl Iterator<Item = Announcement<'a>> + use<'a> {
        let believed = self.is_believed();
        let classic = self
            .nlri_next_hop
            .filter(|_| !self.nlri.is_empty())
            .map(|next_hop| Announcement {
                next_hop,
                prefixes: self.nlri.clone(),
            });
        let multiprotocol = self.mp_reach.clone().filter(|reach| !reach.prefixes.is_empty());
        classic.into_iter().chain(multiprotocol).filter(move |_| believed)
    }

    /// The lists of prefixes to forget, to be applied before the announcements (RFC 4271 §4.3 asks for that
    /// result when a prefix is in both). With treat-as-withdraw, what the message announced is among them.
    pub fn withdrawals(&self) -> impl Iterator<Item = PrefixIter<'a>> + use<'a> {
        let believed = self.is_believed();
        let announced = [
            Some(self.nlri.clone()),
            self.mp_reach.as_ref().map(|reach| reach.prefixes.clone()),
        ];
        [Some(self.withdrawn.clone()), self.mp_unreach.clone()]
            .into_iter()
            .chain(announced.into_iter().filter(move |_| !believed))
            .flatten()
            .filter(|prefixes| !prefixes.is_empty())
    }

    /// The family whose initial table ends here (RFC 4724 §2).
    pub fn end_of_rib(&self) -> Option<Family> {
        self.end_of_rib
    }

    fn is_believed(&self) -> bool {
        self.disposition.severity() < Disposition::TreatAsWithdraw.severity()
    }
}
