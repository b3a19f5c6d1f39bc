//! Decoding of UPDATE: one bounded pass over the attributes, with an outcome for each (RFC 7606).
//!
//! The order matters. First the three fields are cut out by their lengths; when those contradict the
//! message, nothing can be located and the session ends. Then every attribute is walked: its envelope
//! (flags, code, length), whether it came before, its flags against its type, its value. A wrong value costs
//! what its type says: the attribute, the routes, a family, or the session. The worst one decides. Last come
//! the rules about the whole: mandatory attributes, and that a message which announces nothing cannot be
//! treated as withdraw, because it may well be that its NLRI was what broke (RFC 7606 §5.2).

use std::net::{Ipv4Addr, Ipv6Addr};

use smallvec::SmallVec;

use super::as_path::{AsPath, SegmentKind};
use super::attributes::{
    Aggregator, NextHop, Origin, PathAttributes, UnknownAttribute, flag, type_code as ty,
};
use super::community::{Community, ExtendedCommunity, LargeCommunity};
use super::family::{AfiSafi, Family};
use super::notification::{Notification, code, update_error};
use super::open::AS_TRANS;
use super::prefix::PrefixIter;
use super::reader::{Reader, Short};
use super::update::{Announcement, AttributeError, DecodeContext, Disposition, Fault, Update};

/// Findings kept per message; a hostile peer must not make us write a long log line.
const MAX_ERRORS: usize = 8;

/// Decodes the body of an UPDATE.
pub(super) fn update<'a>(body: &'a [u8], context: &DecodeContext) -> Result<Update<'a>, Notification> {
    let fields = Fields::cut(body).map_err(|_| update_fault(update_error::MALFORMED_ATTRIBUTE_LIST, &[]))?;
    // RFC 7606 §3 i, j and §5.3: when prefixes cannot be read they can not be withdrawn either.
    let prefixes = |bytes| {
        PrefixIter::validate(bytes, Family::Ipv4Unicast, context.ipv4.add_path)
            .map_err(|_| update_fault(update_error::INVALID_NETWORK_FIELD, &[]))
    };
    let withdrawn = prefixes(fields.withdrawn)?;
    let nlri = prefixes(fields.nlri)?;

    let mut walk = Walk::new(context);
    walk.attributes(fields.attributes)?;
    walk.finish(withdrawn, nlri)
}

/// The three fields of an UPDATE, cut but not looked at.
struct Fields<'a> {
    withdrawn: &'a [u8],
    attributes: &'a [u8],
    nlri: &'a [u8],
}

impl<'a> Fields<'a> {
    fn cut(body: &'a [u8]) -> Result<Self, Short> {
        let mut reader = Reader::new(body);
        let length = reader.u16()?;
        let withdrawn = reader.take(usize::from(length))?;
        let length = reader.u16()?;
        let attributes = reader.take(usize::from(length))?;
        Ok(Fields {
            withdrawn,
            attributes,
            nlri: reader.take_rest(),
        })
    }
}

/// What an attribute costs that is wrong.
enum Cost {
    Discard(Fault),
    Withdraw(Fault),
    Disable(Family, Fault),
    Reset(Notification),
}

type Verdict<T = ()> = Result<T, Cost>;

/// State of the pass over the attributes.
struct Walk<'a, 'c> {
    context: &'c DecodeContext,
    attributes: PathAttributes,
    disposition: Disposition,
    errors: SmallVec<[AttributeError; 2]>,
    /// One bit per type code that came.
    seen: [u64; 4],
    next_hop: Option<Ipv4Addr>,
    aggregator_is_trans: bool,
    as4_path: Option<AsPath>,
    as4_aggregator: Option<Aggregator>,
    mp_reach: Option<Announcement<'a>>,
    mp_unreach: Option<PrefixIter<'a>>,
    ignored_family: Option<AfiSafi>,
    /// Attributes that came, whether or not they were kept.
    count: usize,
}

impl<'a, 'c> Walk<'a, 'c> {
    fn new(context: &'c DecodeContext) -> Self {
        Walk {
            context,
            attributes: PathAttributes::default(),
            disposition: Disposition::Accept,
            errors: SmallVec::new(),
            seen: [0; 4],
            next_hop: None,
            aggregator_is_trans: false,
            as4_path: None,
            as4_aggregator: None,
            mp_reach: None,
            mp_unreach: None,
            ignored_family: None,
            count: 0,
        }
    }

    fn attributes(&mut self, bytes: &'a [u8]) -> Result<(), Notification> {
        let mut reader = Reader::new(bytes);
        while !reader.is_empty() {
            let whole = reader.remaining();
            let mut probe = reader;
            let (flags, code, value) = match envelope(&mut probe) {
                Ok(envelope) => envelope,
                Err(code) => {
                    // RFC 7606 §4: rely on the total length, so NLRI is where it should be; only what a
                    // cut multiprotocol attribute announced cannot be known.
                    if matches!(code, Some(ty::MP_REACH_NLRI | ty::MP_UNREACH_NLRI)) {
                        return Err(update_fault(update_error::MALFORMED_ATTRIBUTE_LIST, whole));
                    }
                    self.count += 1;
                    self.note(code.unwrap_or(0), Cost::Withdraw(Fault::Truncated), whole)?;
                    break;
                }
            };
            reader = probe;
            self.count += 1;
            // The attribute with its header: what a NOTIFICATION carries as data.
            let whole = whole.get(..whole.len() - reader.len()).unwrap_or(whole);
            if let Err(cost) = self.attribute(flags, code, value, whole) {
                self.note(code, cost, whole)?;
            }
        }
        Ok(())
    }

    /// Records a finding and raises the disposition. `Err` when the session cannot be saved.
    fn note(&mut self, code: u8, cost: Cost, whole: &[u8]) -> Result<(), Notification> {
        let (fault, disposition) = match cost {
            Cost::Discard(fault) => (fault, Disposition::AttributeDiscard),
            Cost::Withdraw(fault) => (fault, Disposition::TreatAsWithdraw),
            Cost::Disable(family, fault) => {
                let notification = update_fault(update_error::OPTIONAL_ATTRIBUTE_ERROR, whole);
                (
                    fault,
                    Disposition::AfiSafiDisable {
                        family,
                        notification: Box::new(notification),
                    },
                )
            }
            Cost::Reset(notification) => return Err(notification),
        };
        if self.errors.len() < MAX_ERRORS {
            self.errors.push(AttributeError { code, fault });
        }
        // Two families disabled by one message: two attributes that cannot be read. Let go.
        if let (
            Disposition::AfiSafiDisable {
                family: before,
                notification,
            },
            Disposition::AfiSafiDisable { family, .. },
        ) = (&self.disposition, &disposition)
            && before != family
        {
            return Err((**notification).clone());
        }
        if disposition.severity() > self.disposition.severity() {
            self.disposition = disposition;
        }
        Ok(())
    }

    /// Marks a type code as seen; false when it came before.
    fn first(&mut self, code: u8) -> bool {
        let bit = 1_u64 << (code & 63);
        match self.seen.get_mut(usize::from(code >> 6)) {
            Some(word) if *word & bit == 0 => {
                *word |= bit;
                true
            }
            _ => false,
        }
    }

    fn has_seen(&self, code: u8) -> bool {
        self.seen
            .get(usize::from(code >> 6))
            .is_some_and(|word| word >> (code & 63) & 1 == 1)
    }

    fn attribute(&mut self, flags: u8, code: u8, value: &'a [u8], whole: &[u8]) -> Verdict {
        if !self.first(code) {
            // RFC 7606 §3 g.
            return Err(match code {
                ty::MP_REACH_NLRI | ty::MP_UNREACH_NLRI => {
                    Cost::Reset(update_fault(update_error::MALFORMED_ATTRIBUTE_LIST, &[]))
                }
                _ => Cost::Discard(Fault::Duplicate),
            });
        }
        let Some(expected) = expected_flags(code) else {
            return self.unknown(flags, code, value);
        };
        if self.is_out_of_place(code) {
            return Err(Cost::Discard(Fault::NotAllowed));
        }
        // RFC 7606 §3 c. The lists are still read below: what they announce has to be withdrawn.
        let flags_fit = flags & (flag::OPTIONAL | flag::TRANSITIVE) == expected;
        if !flags_fit && !matches!(code, ty::MP_REACH_NLRI | ty::MP_UNREACH_NLRI) {
            return Err(match code {
                // RFC 6793 §6: these two never cost more than themselves.
                ty::AS4_PATH | ty::AS4_AGGREGATOR => Cost::Discard(Fault::Flags),
                _ => Cost::Withdraw(Fault::Flags),
            });
        }
        let attributes = &mut self.attributes;
        match code {
            ty::ORIGIN => {
                let [byte] = fixed(value).ok_or(Cost::Withdraw(Fault::Length))?;
                attributes.origin = Origin::from_wire(byte).ok_or(Cost::Withdraw(Fault::Value))?;
            }
            ty::AS_PATH => {
                let path = as_path(value, self.context.four_octet_as).map_err(Cost::Withdraw)?;
                check_path(&path, self.context).map_err(Cost::Withdraw)?;
                attributes.as_path = path;
            }
            ty::NEXT_HOP => {
                let octets: [u8; 4] = fixed(value).ok_or(Cost::Withdraw(Fault::Length))?;
                let address = Ipv4Addr::from(octets);
                if !NextHop::V4(address).is_host() {
                    return Err(Cost::Withdraw(Fault::Value));
                }
                self.next_hop = Some(address);
            }
            ty::MULTI_EXIT_DISC => attributes.med = Some(number(value).ok_or(Cost::Withdraw(Fault::Length))?),
            ty::LOCAL_PREF => {
                attributes.local_pref = Some(number(value).ok_or(Cost::Withdraw(Fault::Length))?);
            }
            ty::ATOMIC_AGGREGATE => {
                if !value.is_empty() {
                    return Err(Cost::Discard(Fault::Length));
                }
                attributes.atomic_aggregate = true;
            }
            ty::AGGREGATOR => {
                let aggregator =
                    aggregator(value, self.context.four_octet_as).ok_or(Cost::Discard(Fault::Length))?;
                if aggregator.asn == 0 {
                    return Err(Cost::Discard(Fault::AsZero));
                }
                self.aggregator_is_trans = aggregator.asn == u32::from(AS_TRANS);
                attributes.aggregator = Some(aggregator);
            }
            ty::COMMUNITIES => {
                let list = multiples::<4>(value).ok_or(Cost::Withdraw(Fault::Length))?;
                attributes
                    .communities
                    .extend(list.map(|octets| Community(u32::from_be_bytes(octets))));
            }
            ty::EXTENDED_COMMUNITIES => {
                let list = multiples::<8>(value).ok_or(Cost::Withdraw(Fault::Length))?;
                let list = list.map(|octets| ExtendedCommunity(u64::from_be_bytes(octets)));
                attributes.extended_communities.extend(list);
            }
            ty::LARGE_COMMUNITY => {
                let list = multiples::<12>(value).ok_or(Cost::Withdraw(Fault::Length))?;
                attributes.large_communities.extend(list.map(large_community));
            }
            ty::ORIGINATOR_ID => {
                let octets: [u8; 4] = fixed(value).ok_or(Cost::Withdraw(Fault::Length))?;
                attributes.originator_id = Some(octets.into());
            }
            ty::CLUSTER_LIST => {
                let list = multiples::<4>(value).ok_or(Cost::Withdraw(Fault::Length))?;
                attributes.cluster_list.extend(list.map(Ipv4Addr::from));
            }
            ty::ONLY_TO_CUSTOMER => {
                attributes.only_to_customer = Some(number(value).ok_or(Cost::Withdraw(Fault::Length))?);
            }
            ty::AIGP => {
                if !tlvs_add_up(value) {
                    return Err(Cost::Discard(Fault::Value));
                }
                attributes.aigp = Some(value.into());
            }
            ty::AS4_PATH => {
                let mut path = as_path(value, true).map_err(Cost::Discard)?;
                // RFC 6793 §6: confederation segments do not belong here; the rest is good.
                if path.has_confederation() {
                    path = without_confederation(&path);
                }
                if path.is_empty() {
                    return Err(Cost::Discard(Fault::Length));
                }
                if path.contains(0) {
                    return Err(Cost::Discard(Fault::AsZero));
                }
                self.as4_path = Some(path);
            }
            ty::AS4_AGGREGATOR => {
                let aggregator = aggregator(value, true).ok_or(Cost::Discard(Fault::Length))?;
                if aggregator.asn == 0 {
                    return Err(Cost::Discard(Fault::AsZero));
                }
                self.as4_aggregator = Some(aggregator);
            }
            ty::MP_REACH_NLRI => {
                self.mp_reach(value, whole)?;
                if !flags_fit {
                    return Err(Cost::Withdraw(Fault::Flags));
                }
            }
            ty::MP_UNREACH_NLRI => {
                self.mp_unreach(value, whole)?;
                if !flags_fit {
                    return Err(Cost::Withdraw(Fault::Flags));
                }
            }
            // `expected_flags` knows exactly the codes above.
            _ => return self.unknown(flags, code, value),
        }
        // The wide forms of RFC 6793 melt into those they belong to and are made afresh.
        let kept = !matches!(code, ty::AS4_PATH | ty::AS4_AGGREGATOR);
        if kept && flags & flag::PARTIAL != 0 && expected == flag::OPTIONAL | flag::TRANSITIVE {
            self.attributes.partial.insert(code);
        }
        Ok(())
    }

    /// Whether an attribute of this type is discarded unread on this kind of session.
    fn is_out_of_place(&self, code: u8) -> bool {
        match code {
            // RFC 7606 §7.5, §7.9, §7.10; RFC 7311 §3.4 for AIGP.
            ty::LOCAL_PREF | ty::ORIGINATOR_ID | ty::CLUSTER_LIST | ty::AIGP => self.context.ebgp,
            // RFC 6793 §4.1: not from a speaker whose AS_PATH is four octets wide already.
            ty::AS4_PATH | ty::AS4_AGGREGATOR => self.context.four_octet_as,
            _ => false,
        }
    }

    fn unknown(&mut self, flags: u8, code: u8, value: &[u8]) -> Verdict {
        if flags & flag::OPTIONAL == 0 {
            // RFC 4271 §6.3 would end the session; a flipped bit far away is no reason to (docs/design/codec.md).
            return Err(Cost::Withdraw(Fault::UnknownWellKnown));
        }
        if flags & flag::TRANSITIVE != 0 {
            // RFC 4271 §5: passed on, with Partial, and never looked into. Non-transitive ones end here.
            let flags = flag::OPTIONAL | flag::TRANSITIVE | flag::PARTIAL;
            self.attributes.unknown.push(UnknownAttribute {
                code,
                flags,
                value: value.into(),
            });
        }
        Ok(())
    }

    fn mp_reach(&mut self, value: &'a [u8], whole: &[u8]) -> Verdict {
        let mut reader = Reader::new(value);
        let unreadable = |_: Short| Cost::Reset(update_fault(update_error::OPTIONAL_ATTRIBUTE_ERROR, whole));
        let afi_safi = read_afi_safi(&mut reader).map_err(unreadable)?;
        let Some(family) = self.negotiated(afi_safi) else {
            return Ok(());
        };
        let context = self.context.family(family);
        let disable = |_: Short| Cost::Disable(family, Fault::Length);

        let length = reader.u8().map_err(disable)?;
        let next_hop = reader.take(usize::from(length)).map_err(disable)?;
        // RFC 7606 §7.11: with an unexpected length the list behind cannot be located for sure.
        let next_hop = mp_next_hop(next_hop, family, true).ok_or(Cost::Disable(family, Fault::Length))?;
        let _reserved = reader.u8().map_err(disable)?;
        let prefixes = PrefixIter::validate(reader.take_rest(), family, context.add_path)
            .map_err(|_| Cost::Disable(family, Fault::Value))?;
        self.mp_reach = Some(Announcement { next_hop, prefixes });
        // A next hop as RFC 8950 has it where that was not agreed leaves no doubt where the list is. Some speakers pass such
        // routes on to whoever is there; it must not cost their other routes.
        let agreed =
            context.extended_next_hop || family != Family::Ipv4Unicast || matches!(next_hop, NextHop::V4(_));
        if agreed && next_hop.is_host() {
            Ok(())
        } else {
            Err(Cost::Withdraw(Fault::Value))
        }
    }

    fn mp_unreach(&mut self, value: &'a [u8], whole: &[u8]) -> Verdict {
        let mut reader = Reader::new(value);
        let afi_safi = read_afi_safi(&mut reader)
            .map_err(|_| Cost::Reset(update_fault(update_error::OPTIONAL_ATTRIBUTE_ERROR, whole)))?;
        let Some(family) = self.negotiated(afi_safi) else {
            return Ok(());
        };
        let prefixes = PrefixIter::validate(reader.take_rest(), family, self.context.family(family).add_path)
            .map_err(|_| Cost::Disable(family, Fault::Value))?;
        self.mp_unreach = Some(prefixes);
        Ok(())
    }

    fn negotiated(&mut self, afi_safi: AfiSafi) -> Option<Family> {
        let family = afi_safi
            .family()
            .filter(|&family| self.context.family(family).negotiated);
        if family.is_none() {
            self.ignored_family = Some(afi_safi);
        }
        family
    }

    /// The rules about the whole message.
    fn finish(mut self, withdrawn: PrefixIter<'a>, nlri: PrefixIter<'a>) -> Result<Update<'a>, Notification> {
        // IPv4 prefixes outside MP_REACH count only where IPv4 was negotiated.
        let classic = self.context.ipv4.negotiated;
        let carries_prefixes = !nlri.is_empty() || self.has_seen(ty::MP_REACH_NLRI);
        let (withdrawn, nlri) = if classic {
            (withdrawn, nlri)
        } else {
            if !withdrawn.is_empty() || !nlri.is_empty() {
                self.ignored_family = Some(AfiSafi::IPV4_UNICAST);
            }
            (
                PrefixIter::empty(Family::Ipv4Unicast),
                PrefixIter::empty(Family::Ipv4Unicast),
            )
        };
        let reaches_multiprotocol = self
            .mp_reach
            .as_ref()
            .is_some_and(|reach| !reach.prefixes.is_empty());
        let announces = !nlri.is_empty() || reaches_multiprotocol;

        if announces {
            // RFC 7606 §3 d. A missing LOCAL_PREF is survived: it counts as 100.
            let mandatory = [
                (ty::ORIGIN, true),
                (ty::AS_PATH, true),
                (ty::NEXT_HOP, !nlri.is_empty()),
            ];
            for (code, wanted) in mandatory {
                if wanted && !self.has_seen(code) {
                    self.note(code, Cost::Withdraw(Fault::Missing), &[])?;
                }
            }
        } else if self.disposition == Disposition::TreatAsWithdraw && !carries_prefixes {
            // RFC 7606 §5.2: there is nothing to withdraw, so perhaps the prefixes are what was lost.
            return Err(update_fault(update_error::MALFORMED_ATTRIBUTE_LIST, &[]));
        }

        self.merge_as4();
        let nlri_next_hop = self.next_hop.map(NextHop::V4);
        self.attributes.next_hop = match (nlri.is_empty(), &self.mp_reach) {
            (true, Some(reach)) => Some(reach.next_hop),
            _ => nlri_next_hop,
        };
        self.attributes.canonicalise();
        let end_of_rib = self.end_of_rib(classic, &withdrawn, &nlri);
        Ok(Update {
            attributes: self.attributes,
            disposition: self.disposition,
            errors: self.errors,
            ignored_family: self.ignored_family,
            withdrawn,
            nlri,
            nlri_next_hop,
            mp_reach: self.mp_reach,
            mp_unreach: self.mp_unreach,
            end_of_rib,
        })
    }

    /// RFC 4724 §2: nothing at all for IPv4, an empty MP_UNREACH_NLRI alone for other families.
    fn end_of_rib(&self, classic: bool, withdrawn: &PrefixIter<'_>, nlri: &PrefixIter<'_>) -> Option<Family> {
        if !withdrawn.is_empty() || !nlri.is_empty() || self.disposition != Disposition::Accept {
            return None;
        }
        match (self.count, &self.mp_unreach) {
            (0, _) => classic.then_some(Family::Ipv4Unicast),
            (1, Some(unreach)) if unreach.is_empty() => Some(unreach.family()),
            _ => None,
        }
    }

    /// RFC 6793 §4.2.3.
    fn merge_as4(&mut self) {
        if self.context.four_octet_as {
            return;
        }
        if let (Some(aggregator), Some(wide)) = (&mut self.attributes.aggregator, self.as4_aggregator) {
            // Aggregated since by a two-octet speaker: both wide attributes tell of an older path.
            if !self.aggregator_is_trans {
                return;
            }
            *aggregator = wide;
        }
        if let Some(as4_path) = self.as4_path.take() {
            self.attributes.as_path = self.attributes.as_path.merge_as4_path(&as4_path);
        }
    }
}

/// Flags, code and value of the next attribute; on failure the code, if it got that far.
fn envelope<'a>(reader: &mut Reader<'a>) -> Result<(u8, u8, &'a [u8]), Option<u8>> {
    let flags = reader.u8().map_err(|_| None)?;
    let code = reader.u8().map_err(|_| None)?;
    let length = if flags & flag::EXTENDED_LENGTH != 0 {
        reader.u16().map(usize::from)
    } else {
        reader.u8().map(usize::from)
    };
    let value = length
        .and_then(|length| reader.take(length))
        .map_err(|_| Some(code))?;
    Ok((flags, code, value))
}

/// Optional and Transitive as the type demands; `None` for a type that is not known here.
const fn expected_flags(code: u8) -> Option<u8> {
    Some(match code {
        ty::ORIGIN | ty::AS_PATH | ty::NEXT_HOP | ty::LOCAL_PREF | ty::ATOMIC_AGGREGATE => flag::TRANSITIVE,
        ty::MULTI_EXIT_DISC
        | ty::ORIGINATOR_ID
        | ty::CLUSTER_LIST
        | ty::MP_REACH_NLRI
        | ty::MP_UNREACH_NLRI
        | ty::AIGP => flag::OPTIONAL,
        ty::AGGREGATOR
        | ty::COMMUNITIES
        | ty::EXTENDED_COMMUNITIES
        | ty::AS4_PATH
        | ty::AS4_AGGREGATOR
        | ty::LARGE_COMMUNITY
        | ty::ONLY_TO_CUSTOMER => flag::OPTIONAL | flag::TRANSITIVE,
        _ => return None,
    })
}

/// A value of exactly `N` bytes.
fn fixed<const N: usize>(value: &[u8]) -> Option<[u8; N]> {
    value.try_into().ok()
}

fn number(value: &[u8]) -> Option<u32> {
    fixed(value).map(u32::from_be_bytes)
}

/// A value of one or more pieces of `N` bytes.
fn multiples<const N: usize>(value: &[u8]) -> Option<impl Iterator<Item = [u8; N]> + '_> {
    let (pieces, rest) = value.as_chunks::<N>();
    (!pieces.is_empty() && rest.is_empty()).then(|| pieces.iter().copied())
}

fn large_community(octets: [u8; 12]) -> LargeCommunity {
    let [a, b, c, d, e, f, g, h, i, j, k, l] = octets;
    LargeCommunity {
        global: u32::from_be_bytes([a, b, c, d]),
        local1: u32::from_be_bytes([e, f, g, h]),
        local2: u32::from_be_bytes([i, j, k, l]),
    }
}

fn aggregator(value: &[u8], four_octet_as: bool) -> Option<Aggregator> {
    if four_octet_as {
        let [a, b, c, d, address @ ..] = fixed::<8>(value)?;
        Some(Aggregator {
            asn: u32::from_be_bytes([a, b, c, d]),
            address: address.into(),
        })
    } else {
        let [a, b, address @ ..] = fixed::<6>(value)?;
        Some(Aggregator {
            asn: u32::from(u16::from_be_bytes([a, b])),
            address: address.into(),
        })
    }
}

/// RFC 7606 §7.2: unknown segment type, empty segment, or segments that do not fill the value exactly.
fn as_path(value: &[u8], four_octet_as: bool) -> Result<AsPath, Fault> {
    let width = if four_octet_as { 4 } else { 2 };
    let mut reader = Reader::new(value);
    let mut path = AsPath::empty();
    while !reader.is_empty() {
        let [kind, count] = reader.array().map_err(|_| Fault::Length)?;
        let kind = SegmentKind::from_wire(kind).ok_or(Fault::Value)?;
        if count == 0 {
            return Err(Fault::Length);
        }
        let asns = reader
            .take(usize::from(count) * width)
            .map_err(|_| Fault::Length)?;
        if four_octet_as {
            path.push_segment(
                kind,
                asns.as_chunks()
                    .0
                    .iter()
                    .map(|octets| u32::from_be_bytes(*octets)),
            );
        } else {
            let asns = asns
                .as_chunks()
                .0
                .iter()
                .map(|octets| u32::from(u16::from_be_bytes(*octets)));
            path.push_segment(kind, asns);
        }
    }
    Ok(path)
}

/// The rules about AS_PATH that are not about its form.
fn check_path(path: &AsPath, context: &DecodeContext) -> Result<(), Fault> {
    if path.asns().count() > context.max_as_path_hops {
        return Err(Fault::TooLong);
    }
    if path.contains(0) {
        return Err(Fault::AsZero);
    }
    // RFC 5065 §5.3: we are in no confederation, so no peer is in ours.
    if path.has_confederation() {
        return Err(Fault::Value);
    }
    if path.has_set() && !context.allow_as_set {
        return Err(Fault::AsSet);
    }
    Ok(())
}

fn without_confederation(path: &AsPath) -> AsPath {
    let mut kept = AsPath::empty();
    for segment in path.segments() {
        if !matches!(segment.kind, SegmentKind::ConfedSequence | SegmentKind::ConfedSet) {
            kept.push_segment(segment.kind, segment.asns.iter().copied());
        }
    }
    kept
}

/// RFC 7311 §3: type (1), length with both fields included (2), value.
fn tlvs_add_up(value: &[u8]) -> bool {
    let mut reader = Reader::new(value);
    let mut any = false;
    while !reader.is_empty() {
        let Ok([_type, high, low]) = reader.array() else {
            return false;
        };
        let length = usize::from(u16::from_be_bytes([high, low]));
        let Some(value) = length.checked_sub(3) else {
            return false;
        };
        if reader.take(value).is_err() {
            return false;
        }
        any = true;
    }
    any
}

fn read_afi_safi(reader: &mut Reader<'_>) -> Result<AfiSafi, Short> {
    Ok(AfiSafi {
        afi: reader.u16()?,
        safi: reader.u8()?,
    })
}

/// The next hop of MP_REACH_NLRI by its length: 4, 16 or 32 bytes (RFC 4760, RFC 2545 §3, RFC 8950 §3).
fn mp_next_hop(bytes: &[u8], family: Family, extended: bool) -> Option<NextHop> {
    match (family, bytes.len()) {
        (Family::Ipv4Unicast, 4) => Some(NextHop::V4(fixed::<4>(bytes)?.into())),
        (Family::Ipv4Unicast, 16 | 32) if !extended => None,
        (_, 16) => Some(NextHop::V6 {
            address: fixed::<16>(bytes)?.into(),
            link_local: None,
        }),
        (_, 32) => {
            let (global, local) = bytes.split_first_chunk::<16>()?;
            let global = Ipv6Addr::from(*global);
            let local = Some(Ipv6Addr::from(fixed::<16>(local)?)).filter(Ipv6Addr::is_unicast_link_local);
            // Unnumbered speakers fill the global half with nothing, or with the link-local address again.
            match local {
                Some(local) if global.is_unspecified() || global.is_unicast_link_local() => {
                    Some(NextHop::V6 {
                        address: local,
                        link_local: None,
                    })
                }
                link_local => Some(NextHop::V6 {
                    address: global,
                    link_local,
                }),
            }
        }
        _ => None,
    }
}

fn update_fault(subcode: u8, data: &[u8]) -> Notification {
    Notification::with_data(code::UPDATE_MESSAGE_ERROR, subcode, data)
}
