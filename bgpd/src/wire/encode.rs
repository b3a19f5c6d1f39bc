//! Encoding of UPDATE: attributes once, prefixes packed behind them, as few messages as will do.
//!
//! ```text
//! IPv4, IPv4 next hop   | header | 0 | n | attributes                      | prefixes |
//! otherwise             | header | 0 | n | MP_REACH { next hop, prefixes } , attributes |
//! IPv4 withdrawal       | header | n | prefixes | 0 |
//! otherwise             | header | 0 | n | MP_UNREACH { prefixes } |
//! ```
//!
//! Attributes go out in the order of their codes, the multiprotocol one first (RFC 7606 §5.1), with the
//! flags their types demand. When policy has made them so long that no prefix fits beside them, the prefixes
//! are withdrawn: the peer must not keep what we no longer stand for.

use bytes::{BufMut, BytesMut};

use super::as_path::AsPath;
use super::attributes::{NextHop, PathAttributes, UnknownAttribute, flag, type_code as ty};
use super::family::{Family, FamilyContext};
use super::header::{
    MAX_EXTENDED_MESSAGE_LENGTH, MAX_MESSAGE_LENGTH, MessageType, begin_message, finish_message, put_length,
};
use super::open::AS_TRANS;
use super::prefix::{Nlri, Prefix};

/// Header, and the two length fields of an UPDATE.
const UPDATE_OVERHEAD: usize = 23;
/// LOCAL_PREF of a route that has none, on internal sessions, where the attribute is demanded.
const DEFAULT_LOCAL_PREF: u32 = 100;

/// What an encoder has to know of the session: everything that changes bytes. Sessions with equal contexts
/// can share what was encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EncodeContext {
    /// Both sides have the Four-octet AS capability (RFC 6793).
    pub four_octet_as: bool,
    /// The peer is in another AS: LOCAL_PREF, ORIGINATOR_ID, CLUSTER_LIST, AIGP and non-transitive extended
    /// communities are left out.
    pub ebgp: bool,
    /// Both sides have the Extended Message capability (RFC 8654).
    pub extended_messages: bool,
    /// IPv4 unicast, in the direction of sending.
    pub ipv4: FamilyContext,
    /// IPv6 unicast, in the direction of sending.
    pub ipv6: FamilyContext,
}

impl EncodeContext {
    /// What was negotiated for a family.
    pub fn family(&self, family: Family) -> FamilyContext {
        match family {
            Family::Ipv4Unicast => self.ipv4,
            Family::Ipv6Unicast => self.ipv6,
        }
    }

    /// The longest message that may be sent.
    pub fn max_message_length(&self) -> usize {
        if self.extended_messages {
            MAX_EXTENDED_MESSAGE_LENGTH
        } else {
            MAX_MESSAGE_LENGTH
        }
    }
}

impl Default for EncodeContext {
    /// An external four-octet session for IPv4 unicast without extensions.
    fn default() -> Self {
        EncodeContext {
            four_octet_as: true,
            ebgp: true,
            extended_messages: false,
            ipv4: FamilyContext {
                negotiated: true,
                ..FamilyContext::default()
            },
            ipv6: FamilyContext::default(),
        }
    }
}

/// Why prefixes could not be announced and were withdrawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// No prefix fits into a message beside the attributes.
    #[error("attributes of {bytes} bytes leave no room for a prefix")]
    TooLarge {
        /// Their encoded length.
        bytes: usize,
    },
    /// There is none, or the peer does not take one of this kind for the family.
    #[error("no next hop that the peer takes for this family")]
    NextHop,
}

/// What was appended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packed {
    /// Finished messages.
    pub messages: usize,
    /// Prefixes in them.
    pub prefixes: usize,
    /// When set, the prefixes were withdrawn and not announced.
    pub refusal: Option<Refusal>,
}

/// Writes UPDATE messages for one kind of session.
#[derive(Clone, Copy, Debug)]
pub struct UpdateBuilder {
    context: EncodeContext,
}

impl UpdateBuilder {
    /// A builder for sessions with this context.
    pub fn new(context: EncodeContext) -> Self {
        UpdateBuilder { context }
    }

    /// The context it was made with.
    pub fn context(&self) -> &EncodeContext {
        &self.context
    }

    /// Appends messages that announce `prefixes` with `attributes`. Prefixes of another family than `family`
    /// are skipped; without any prefix nothing is written. Path identifiers are written when ADD-PATH was
    /// negotiated for sending.
    pub fn announce(
        &self,
        family: Family,
        attributes: &PathAttributes,
        prefixes: impl IntoIterator<Item = Nlri>,
        out: &mut BytesMut,
    ) -> Packed {
        let context = self.context.family(family);
        let refused = |refusal, prefixes, out: &mut BytesMut| Packed {
            refusal: Some(refusal),
            ..self.withdraw(family, prefixes, out)
        };
        let Some(next_hop) = attributes
            .next_hop
            .filter(|_| attributes.fits(family, context.extended_next_hop))
        else {
            return refused(Refusal::NextHop, prefixes, out);
        };
        let classic = match (family, next_hop) {
            (Family::Ipv4Unicast, NextHop::V4(address)) => Some(address),
            _ => None,
        };
        let mut shared = BytesMut::with_capacity(256);
        AttributeWriter {
            out: &mut shared,
            unknown: &attributes.unknown,
        }
        .write(attributes, classic.map(|address| address.octets()), &self.context);
        let head = if classic.is_some() {
            0
        } else {
            mp_reach_head(next_hop)
        };
        let max = self.context.max_message_length();
        let used = UPDATE_OVERHEAD + shared.len() + head;
        let Some(room) = max
            .checked_sub(used)
            .filter(|&room| room >= longest(family, context.add_path))
        else {
            return refused(
                Refusal::TooLarge {
                    bytes: shared.len() + head,
                },
                prefixes,
                out,
            );
        };

        let packer = Packer {
            family,
            add_path: context.add_path,
            room,
        };
        if classic.is_some() {
            packer.pack(
                prefixes,
                out,
                |out| {
                    out.put_u16(0);
                    // The check of `room` keeps the attributes within a message.
                    out.put_u16(u16::try_from(shared.len()).unwrap_or(u16::MAX));
                    out.put_slice(&shared);
                },
                |_, _| {},
            )
        } else {
            packer.pack(
                prefixes,
                out,
                |out| {
                    out.put_u32(0);
                    begin_mp(out, ty::MP_REACH_NLRI, family);
                    put_next_hop(out, next_hop);
                    out.put_u8(0);
                },
                |out, body| {
                    finish_attribute(out, body + 4, 4);
                    out.put_slice(&shared);
                    let length = out.len() - body - 4;
                    put_length(out, body + 2, length);
                },
            )
        }
    }

    /// Appends messages that withdraw `prefixes`. Prefixes of another family are skipped.
    pub fn withdraw(
        &self,
        family: Family,
        prefixes: impl IntoIterator<Item = Nlri>,
        out: &mut BytesMut,
    ) -> Packed {
        let add_path = self.context.family(family).add_path;
        let room = self.context.max_message_length() - UPDATE_OVERHEAD;
        match family {
            Family::Ipv4Unicast => Packer {
                family,
                add_path,
                room,
            }
            .pack(
                prefixes,
                out,
                |out| out.put_u16(0),
                |out, body| {
                    let length = out.len() - body - 2;
                    put_length(out, body, length);
                    out.put_u16(0);
                },
            ),
            // Header of the attribute, AFI and SAFI.
            Family::Ipv6Unicast => Packer {
                family,
                add_path,
                room: room - 4 - 3,
            }
            .pack(
                prefixes,
                out,
                |out| {
                    out.put_u32(0);
                    begin_mp(out, ty::MP_UNREACH_NLRI, family);
                },
                |out, body| {
                    finish_attribute(out, body + 4, 4);
                    let length = out.len() - body - 4;
                    put_length(out, body + 2, length);
                },
            ),
        }
    }

    /// Appends the End-of-RIB marker of a family (RFC 4724 §2).
    pub fn end_of_rib(&self, family: Family, out: &mut BytesMut) {
        let start = out.len();
        begin_message(out, MessageType::Update);
        let body = out.len();
        out.put_u32(0);
        if family != Family::Ipv4Unicast {
            begin_mp(out, ty::MP_UNREACH_NLRI, family);
            finish_attribute(out, body + 4, 4);
            let length = out.len() - body - 4;
            put_length(out, body + 2, length);
        }
        finish_message(out, start);
    }
}

/// Appends the attributes of a path as tables are dumped (RFC 6396 §4.3.4): AS numbers of four octets, everything that stays
/// inside an AS (a LOCAL_PREF of 100 where there is none), and of MP_REACH_NLRI, for a next hop that NEXT_HOP cannot carry, only
/// length and next hop.
pub fn encode_table_attributes(attributes: &PathAttributes, family: Family, out: &mut BytesMut) {
    let classic = match (family, attributes.next_hop) {
        (Family::Ipv4Unicast, Some(NextHop::V4(address))) => Some(address.octets()),
        _ => None,
    };
    let context = EncodeContext {
        ebgp: false,
        ..EncodeContext::default()
    };
    AttributeWriter {
        out,
        unknown: &attributes.unknown,
    }
    .write(attributes, classic, &context);
    if let Some(next_hop) = attributes.next_hop.filter(|_| classic.is_none()) {
        let at = out.len();
        out.put_slice(&[flag::OPTIONAL, ty::MP_REACH_NLRI, 0]);
        put_next_hop(out, next_hop);
        finish_attribute(out, at, 3);
    }
}

/// Cuts a sequence of prefixes into messages.
struct Packer {
    family: Family,
    add_path: bool,
    /// Bytes of prefixes that a message takes. Never less than the longest prefix.
    room: usize,
}

impl Packer {
    /// `begin` writes what stands before the prefixes, right after the header; `finish` what stands after
    /// them, and the lengths; its argument is where the body of the message starts.
    fn pack(
        &self,
        prefixes: impl IntoIterator<Item = Nlri>,
        out: &mut BytesMut,
        begin: impl Fn(&mut BytesMut),
        finish: impl Fn(&mut BytesMut, usize),
    ) -> Packed {
        let mut packed = Packed::default();
        let mut open: Option<Place> = None;
        for nlri in prefixes {
            if nlri.prefix.family() != self.family {
                continue;
            }
            let length = nlri_length(nlri.prefix, self.add_path);
            let mut place = match open {
                Some(place) if place.end - place.prefixes + length <= self.room => place,
                full => {
                    if let Some(place) = full {
                        close(out, place, &finish);
                    }
                    let start = out.len();
                    begin_message(out, MessageType::Update);
                    let body = out.len();
                    begin(out);
                    packed.messages += 1;
                    Place {
                        start,
                        body,
                        prefixes: out.len(),
                        end: out.len(),
                    }
                }
            };
            if out.len() < place.end + LONGEST_NLRI {
                out.resize(place.end + STEP, 0);
            }
            if let Some(free) = out.get_mut(place.end..) {
                write_nlri(free, nlri, self.add_path);
            }
            place.end += length;
            open = Some(place);
            packed.prefixes += 1;
        }
        if let Some(place) = open {
            close(out, place, &finish);
        }
        packed
    }
}

/// Drops what was reserved and not used, and completes the message.
fn close(out: &mut BytesMut, place: Place, finish: &impl Fn(&mut BytesMut, usize)) {
    out.truncate(place.end);
    finish(out, place.body);
    finish_message(out, place.start);
}

/// How far the buffer grows at a time while prefixes are written: little enough for a message with one.
const STEP: usize = 256;

/// Offsets of the message that is being filled.
#[derive(Clone, Copy)]
struct Place {
    start: usize,
    body: usize,
    prefixes: usize,
    /// Where the next prefix goes. The buffer reaches further.
    end: usize,
}

/// Path id, length and 16 bytes of address.
const LONGEST_NLRI: usize = 21;

const fn longest(family: Family, add_path: bool) -> usize {
    1 + family.max_prefix_length() as usize / 8 + if add_path { 4 } else { 0 }
}

/// Bytes that a prefix takes.
#[inline]
fn nlri_length(prefix: Prefix, add_path: bool) -> usize {
    1 + usize::from(prefix.length()).div_ceil(8) + if add_path { 4 } else { 0 }
}

/// Writes a prefix to the front of `free`, which has room for the longest. The whole address is written,
/// whatever the length: a copy of fixed size is a store or two, and the next prefix overwrites the rest.
#[inline]
fn write_nlri(free: &mut [u8], nlri: Nlri, add_path: bool) {
    let mut free = free;
    if add_path {
        let Some((head, rest)) = free.split_first_chunk_mut() else {
            return;
        };
        *head = nlri.path_id.to_be_bytes();
        free = rest;
    }
    let Some((length, free)) = free.split_first_mut() else {
        return;
    };
    *length = nlri.prefix.length();
    match nlri.prefix {
        Prefix::V4(prefix) => {
            if let Some(head) = free.first_chunk_mut() {
                *head = prefix.bits().to_be_bytes();
            }
        }
        Prefix::V6(prefix) => {
            if let Some(head) = free.first_chunk_mut() {
                *head = prefix.bits().to_be_bytes();
            }
        }
    }
}

/// Bytes of MP_REACH_NLRI before the prefixes, with a wide length.
fn mp_reach_head(next_hop: NextHop) -> usize {
    4 + 3 + 1 + next_hop_length(next_hop) + 1
}

fn next_hop_length(next_hop: NextHop) -> usize {
    match next_hop {
        NextHop::V4(_) => 4,
        NextHop::V6 { link_local: None, .. } => 16,
        NextHop::V6 {
            link_local: Some(_), ..
        } => 32,
    }
}

fn put_next_hop(out: &mut BytesMut, next_hop: NextHop) {
    match next_hop {
        NextHop::V4(address) => {
            out.put_u8(4);
            out.put_slice(&address.octets());
        }
        NextHop::V6 { address, link_local } => {
            out.put_u8(if link_local.is_some() { 32 } else { 16 });
            out.put_slice(&address.octets());
            if let Some(local) = link_local {
                out.put_slice(&local.octets());
            }
        }
    }
}

/// Header of a multiprotocol attribute with a wide length that is not known yet, AFI and SAFI.
fn begin_mp(out: &mut BytesMut, code: u8, family: Family) {
    let afi_safi = family.afi_safi();
    out.put_slice(&[flag::OPTIONAL | flag::EXTENDED_LENGTH, code, 0, 0]);
    out.put_u16(afi_safi.afi);
    out.put_u8(afi_safi.safi);
}

/// Sets the length of the attribute that starts at `at` and ends where `out` ends, and whose header has
/// `header` bytes (3 or 4). The header is made as short as the length allows.
fn finish_attribute(out: &mut BytesMut, at: usize, header: usize) {
    let end = out.len();
    let length = end - at - header;
    let wanted = if length > usize::from(u8::MAX) { 4 } else { 3 };
    match (header, wanted) {
        (3, 4) => {
            out.put_u8(0);
            out.copy_within(at + 3..end, at + 4);
        }
        (4, 3) => {
            out.copy_within(at + 4..end, at + 3);
            out.truncate(end - 1);
        }
        _ => {}
    }
    if let Some(flags) = out.get_mut(at) {
        *flags = *flags & !flag::EXTENDED_LENGTH | if wanted == 4 { flag::EXTENDED_LENGTH } else { 0 };
    }
    match u8::try_from(length) {
        Ok(length) => {
            if let Some(field) = out.get_mut(at + 2) {
                *field = length;
            }
        }
        // Past 65535 the value is wrong, and the caller finds that the whole is too large.
        Err(_) => put_length(out, at + 2, length),
    }
}

/// Writes the attributes that are not about reachability, in the order of their codes.
struct AttributeWriter<'a> {
    out: &'a mut BytesMut,
    /// Those still to be written, by code.
    unknown: &'a [UnknownAttribute],
}

const WELL_KNOWN: u8 = flag::TRANSITIVE;
const NON_TRANSITIVE: u8 = flag::OPTIONAL;
const TRANSITIVE: u8 = flag::OPTIONAL | flag::TRANSITIVE;

impl AttributeWriter<'_> {
    fn write(mut self, attributes: &PathAttributes, next_hop: Option<[u8; 4]>, context: &EncodeContext) {
        let internal = !context.ebgp;
        let partial = |code| {
            TRANSITIVE
                | if attributes.partial.contains(code) {
                    flag::PARTIAL
                } else {
                    0
                }
        };
        let narrow = !context.four_octet_as;
        let wide_aggregator = attributes
            .aggregator
            .filter(|aggregator| narrow && u16::try_from(aggregator.asn).is_err());

        self.put(WELL_KNOWN, ty::ORIGIN, |out| out.put_u8(attributes.origin as u8));
        self.put(WELL_KNOWN, ty::AS_PATH, |out| {
            put_as_path(out, &attributes.as_path, narrow)
        });
        if let Some(octets) = next_hop {
            self.put(WELL_KNOWN, ty::NEXT_HOP, |out| out.put_slice(&octets));
        }
        if let Some(med) = attributes.med {
            self.put(NON_TRANSITIVE, ty::MULTI_EXIT_DISC, |out| out.put_u32(med));
        }
        if internal {
            let local_pref = attributes.local_pref.unwrap_or(DEFAULT_LOCAL_PREF);
            self.put(WELL_KNOWN, ty::LOCAL_PREF, |out| out.put_u32(local_pref));
        }
        if attributes.atomic_aggregate {
            self.put(WELL_KNOWN, ty::ATOMIC_AGGREGATE, |_| {});
        }
        if let Some(aggregator) = attributes.aggregator {
            self.put(partial(ty::AGGREGATOR), ty::AGGREGATOR, |out| {
                if narrow {
                    out.put_u16(u16::try_from(aggregator.asn).unwrap_or(AS_TRANS));
                } else {
                    out.put_u32(aggregator.asn);
                }
                out.put_slice(&aggregator.address.octets());
            });
        }
        if !attributes.communities.is_empty() {
            self.put(partial(ty::COMMUNITIES), ty::COMMUNITIES, |out| {
                attributes
                    .communities
                    .iter()
                    .for_each(|community| out.put_u32(community.0));
            });
        }
        if let Some(originator_id) = attributes.originator_id.filter(|_| internal) {
            self.put(NON_TRANSITIVE, ty::ORIGINATOR_ID, |out| {
                out.put_slice(&originator_id.octets())
            });
        }
        if internal && !attributes.cluster_list.is_empty() {
            self.put(NON_TRANSITIVE, ty::CLUSTER_LIST, |out| {
                attributes
                    .cluster_list
                    .iter()
                    .for_each(|cluster| out.put_slice(&cluster.octets()));
            });
        }
        // RFC 4360 §6: the non-transitive ones stay inside the AS.
        let mut extended = attributes
            .extended_communities
            .iter()
            .filter(|community| internal || community.is_transitive())
            .peekable();
        if extended.peek().is_some() {
            self.put(
                partial(ty::EXTENDED_COMMUNITIES),
                ty::EXTENDED_COMMUNITIES,
                |out| {
                    extended.for_each(|community| out.put_u64(community.0));
                },
            );
        }
        // RFC 6793 §4.2.2: only when there is something that AS_PATH could not say.
        if narrow && attributes.as_path.asns().any(|asn| u16::try_from(asn).is_err()) {
            self.put(TRANSITIVE, ty::AS4_PATH, |out| {
                put_as_path(out, &attributes.as_path, false)
            });
        }
        if let Some(aggregator) = wide_aggregator {
            self.put(TRANSITIVE, ty::AS4_AGGREGATOR, |out| {
                out.put_u32(aggregator.asn);
                out.put_slice(&aggregator.address.octets());
            });
        }
        if let Some(aigp) = attributes.aigp.as_ref().filter(|_| internal) {
            self.put(NON_TRANSITIVE, ty::AIGP, |out| out.put_slice(aigp));
        }
        if !attributes.large_communities.is_empty() {
            self.put(partial(ty::LARGE_COMMUNITY), ty::LARGE_COMMUNITY, |out| {
                for community in &attributes.large_communities {
                    out.put_u32(community.global);
                    out.put_u32(community.local1);
                    out.put_u32(community.local2);
                }
            });
        }
        if let Some(asn) = attributes.only_to_customer {
            self.put(partial(ty::ONLY_TO_CUSTOMER), ty::ONLY_TO_CUSTOMER, |out| {
                out.put_u32(asn)
            });
        }
        self.put_unknown_before(None);
    }

    fn put(&mut self, flags: u8, code: u8, value: impl FnOnce(&mut BytesMut)) {
        self.put_unknown_before(Some(code));
        self.put_one(flags, code, value);
    }

    fn put_one(&mut self, flags: u8, code: u8, value: impl FnOnce(&mut BytesMut)) {
        let at = self.out.len();
        self.out.put_slice(&[flags, code, 0]);
        value(self.out);
        finish_attribute(self.out, at, 3);
    }

    /// Writes the unknown attributes whose codes come before `code`, or all that are left.
    fn put_unknown_before(&mut self, code: Option<u8>) {
        while let Some((next, rest)) = self.unknown.split_first()
            && code.is_none_or(|code| next.code < code)
        {
            self.unknown = rest;
            self.put_one(next.flags, next.code, |out| out.put_slice(&next.value));
        }
    }
}

/// Writes the segments; with `narrow`, two octets per number and AS_TRANS for those that do not fit.
fn put_as_path(out: &mut BytesMut, path: &AsPath, narrow: bool) {
    for segment in path.segments() {
        for piece in segment.asns.chunks(usize::from(u8::MAX)) {
            out.put_u8(segment.kind as u8);
            out.put_u8(u8::try_from(piece.len()).unwrap_or(u8::MAX));
            for &asn in piece {
                if narrow {
                    out.put_u16(u16::try_from(asn).unwrap_or(AS_TRANS));
                } else {
                    out.put_u32(asn);
                }
            }
        }
    }
}
