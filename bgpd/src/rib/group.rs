//! Update groups: encode once, send to all.
//!
//! ```text
//!  changes ──► buckets by (attributes, source) ──► finished UPDATEs ──► log:  e7 e8 e9 e10 e11
//!                                                                             ▲        ▲     ▲
//!                                                            cursors:      peer C   peer A  peer B (has all)
//! ```
//!
//! The log of a group is shared and immutable; a member has a cursor into it. What has been read by all is dropped. An entry
//! has one source, so that the source's own cursor steps over it (split horizon); only when the best path moves from one member
//! to another does that other one get an entry of its own.
//!
//! A member that joins gets a walk over the table, built once for all that join in the same window, and its cursor set to the
//! log's end as it was when the walk was made. It does not matter that log entries may repeat what the walk says: the
//! log ends with the last word on every prefix that changed since.
//!
//! A member that falls too far behind gives up its place in the log for the bare set of paths it missed; when it reads
//! again it is told how those stand by then. So a peer that does not read costs a bounded amount of memory.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Weak};

use bytes::{Bytes, BytesMut};
use hashbrown::HashMap;
use smallvec::SmallVec;

use super::attributes::AttrId;
use super::export::GroupKey;
use super::table::{LOCAL, PeerIndex};
use crate::wire::{
    DecodeContext, FamilyContext, HEADER_LENGTH, Message, Nlri, PathAttributes, Prefix, PrefixIter,
    RefreshSubtype, RouteRefresh, UpdateBuilder, frame,
};

/// Who gets an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Audience {
    /// Everybody but the source.
    Except(PeerIndex),
    /// One member.
    Only(PeerIndex),
}

impl Audience {
    pub(crate) fn includes(self, peer: PeerIndex) -> bool {
        match self {
            Self::Except(source) => source != peer,
            Self::Only(member) => member == peer,
        }
    }
}

/// Why a member gets the whole table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Feed {
    /// It has just come up.
    First,
    /// It asked for it (RFC 2918).
    Again,
    /// It asked for it, and is told where the repetition begins and ends (RFC 7313).
    Demarcated,
}

/// Finished messages that belong together.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) bytes: Bytes,
    pub(crate) messages: u32,
    pub(crate) audience: Audience,
    /// Bytes appended to the log before this entry.
    offset: u64,
}

/// Which bucket, if any, a set from a source goes to.
type Answer = ((AttrId, PeerIndex), Option<usize>);

/// Prefixes gathered for one set of attributes from one source, in the order of first use.
#[derive(Debug, Default)]
struct Buckets {
    /// By set, rule and source: the place in `announce`, or that nothing can be sent.
    index: HashMap<(AttrId, Option<usize>, PeerIndex), Option<usize>>,
    /// The answers given last, for a filter that does not look at prefixes: most of a batch goes from one set of one source to
    /// another.
    last: [Option<Answer>; 2],
    announce: Vec<(Arc<PathAttributes>, PeerIndex, List)>,
    withdraw: HashMap<Audience, usize>,
    /// The answer of `withdraw` given last.
    last_withdraw: Option<(Audience, usize)>,
    withdrawn: Vec<(Audience, List)>,
}

/// Paths, packed as on the wire: a sixth of what they take as values.
#[derive(Debug, Default)]
struct List {
    bytes: SmallVec<[u8; 64]>,
    count: usize,
}

impl List {
    #[inline]
    fn push(&mut self, nlri: Nlri, with_id: bool) {
        if with_id {
            self.bytes.extend_from_slice(&nlri.path_id.to_be_bytes());
        }
        let length = nlri.prefix.length();
        // The whole address, and then as much of it back as the length does not need: copies of fixed size are cheap.
        let end = self.bytes.len() + 1 + usize::from(length).div_ceil(8);
        match nlri.prefix {
            Prefix::V4(prefix) => {
                let [a, b, c, d] = prefix.bits().to_be_bytes();
                self.bytes.extend_from_slice(&[length, a, b, c, d]);
            }
            Prefix::V6(prefix) => {
                self.bytes.push(length);
                self.bytes.extend_from_slice(&prefix.bits().to_be_bytes());
            }
        }
        self.bytes.truncate(end);
        self.count += 1;
    }
}

/// Small entries share a piece of memory: one allocation for so many bytes.
const PIECE: usize = 16 * 1024;

/// Makes room for the messages of a list; what was finished before stays where it is.
fn make_room(out: &mut BytesMut, prefixes: &List) {
    let wanted = prefixes.bytes.len() + prefixes.bytes.len() / 8 + 1024;
    if out.capacity() < wanted {
        *out = BytesMut::with_capacity(wanted.max(PIECE));
    }
}

/// Where one peer stands in its group.
#[derive(Debug, Default)]
pub(crate) struct Member {
    /// Only for this peer: before everything else.
    private: VecDeque<Entry>,
    /// The walk of a joining, and how much of it is sent.
    snapshot: Option<(Arc<Vec<Entry>>, usize)>,
    /// End-of-RIB, to be sent when the walk is.
    end_of_rib: Option<Bytes>,
    /// The end of a repetition (RFC 7313), to be sent when the walk is.
    end_of_refresh: Option<Bytes>,
    /// Sequence number of the next log entry.
    cursor: u64,
    /// Paths to be told anew.
    missed: BTreeSet<Nlri>,
}

/// Peers that get the same bytes.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) key: GroupKey,
    /// Whether the filter does.
    looks_at_prefix: bool,
    builder: UpdateBuilder,
    pub(crate) members: HashMap<PeerIndex, Member>,
    log: VecDeque<Entry>,
    /// Sequence number of the log's first entry.
    first: u64,
    /// Bytes ever appended.
    appended: u64,
    buckets: Buckets,
    snapshot: Weak<Vec<Entry>>,
    /// The log's end when the snapshot was made.
    snapshot_at: u64,
    /// Prefixes that the group has, and how many of them by source.
    pub(crate) advertised: usize,
    pub(crate) by_source: Vec<u32>,
}

/// Prefixes in a bucket before it is turned into messages during a walk: bounds the memory of a walk.
const WALK_BUCKET: usize = 16 * 1024;

impl Group {
    pub(crate) fn new(key: GroupKey) -> Self {
        Self {
            builder: UpdateBuilder::new(key.encode),
            looks_at_prefix: key.filter.looks_at_prefix(),
            key,
            members: HashMap::new(),
            log: VecDeque::new(),
            first: 0,
            appended: 0,
            buckets: Buckets::default(),
            snapshot: Weak::new(),
            snapshot_at: 0,
            advertised: 0,
            by_source: Vec::new(),
        }
    }

    /// Sequence number of the next log entry.
    pub(crate) fn end(&self) -> u64 {
        self.first + self.log.len() as u64
    }

    /// Counts a prefix in or out.
    pub(crate) fn count(&mut self, source: PeerIndex, more: bool) {
        let at = usize::from(source);
        if at >= self.by_source.len() {
            self.by_source.resize(at + 1, 0);
        }
        let Some(of_source) = self.by_source.get_mut(at) else {
            return;
        };
        if more {
            self.advertised += 1;
            *of_source = of_source.saturating_add(1);
        } else {
            self.advertised = self.advertised.saturating_sub(1);
            *of_source = of_source.saturating_sub(1);
        }
    }

    /// What a member has.
    pub(crate) fn advertised_to(&self, peer: PeerIndex) -> usize {
        let of_peer = self.by_source.get(usize::from(peer)).copied().unwrap_or(0);
        self.advertised.saturating_sub(of_peer as usize)
    }

    /// The bucket for a set of attributes that a rule let pass; none when it cannot be sent. `attributes` makes the outgoing
    /// set, and is asked once a batch for each (set, rule, source).
    pub(crate) fn bucket(
        &mut self,
        (attr, rule, source): (AttrId, Option<usize>, PeerIndex),
        attributes: impl FnOnce(&GroupKey) -> Option<Arc<PathAttributes>>,
    ) -> Option<usize> {
        if let Some(place) = self.buckets.index.get(&(attr, rule, source)) {
            return *place;
        }
        let place = attributes(&self.key).map(|attributes| {
            self.buckets.announce.push((attributes, source, List::default()));
            self.buckets.announce.len() - 1
        });
        self.buckets.index.insert((attr, rule, source), place);
        place
    }

    /// The bucket (or none) that this set from this source got last in this batch, whatever the prefix was.
    pub(crate) fn last_bucket(&self, attr: AttrId, source: PeerIndex) -> Option<Option<usize>> {
        let mut last = self.buckets.last.iter().flatten();
        let (_, bucket) = last.find(|(of, _)| *of == (attr, source))?;
        Some(*bucket)
    }

    /// Remembers it, unless another prefix could get another answer.
    pub(crate) fn remember(&mut self, attr: AttrId, source: PeerIndex, bucket: Option<usize>) {
        if !self.looks_at_prefix {
            let [last, before] = &mut self.buckets.last;
            *before = last.replace(((attr, source), bucket));
        }
    }

    /// Adds a path to a bucket of this batch.
    pub(crate) fn announce(&mut self, nlri: Nlri, bucket: usize) {
        let with_ids = self.with_ids();
        if let Some((_, _, prefixes)) = self.buckets.announce.get_mut(bucket) {
            prefixes.push(nlri, with_ids);
        }
    }

    /// A path took the place of another under the same name.
    pub(crate) fn replace(
        &mut self,
        nlri: Nlri,
        (old, was): (PeerIndex, usize),
        (new, is): (PeerIndex, usize),
    ) {
        // From one attribute set to another that looks the same outside: nothing to say.
        if old == new && (was == is || self.outgoing(was) == self.outgoing(is)) {
            return;
        }
        self.announce(nlri, is);
        if old != new {
            // The new source had the old route from us and now gets none: it must let go of it.
            self.withdraw(nlri, Audience::Only(new));
            self.count(old, false);
            self.count(new, true);
        }
    }

    /// The outgoing attributes of a bucket.
    pub(crate) fn outgoing(&self, bucket: usize) -> Option<&Arc<PathAttributes>> {
        self.buckets
            .announce
            .get(bucket)
            .map(|(attributes, _, _)| attributes)
    }

    pub(crate) fn withdraw(&mut self, nlri: Nlri, audience: Audience) {
        if let Audience::Only(peer) = audience
            && !self.members.contains_key(&peer)
        {
            return;
        }
        let with_ids = self.with_ids();
        let place = match self.buckets.last_withdraw {
            Some((of, place)) if of == audience => place,
            _ => {
                let place = *self.buckets.withdraw.entry(audience).or_insert_with(|| {
                    self.buckets.withdrawn.push((audience, List::default()));
                    self.buckets.withdrawn.len() - 1
                });
                self.buckets.last_withdraw = Some((audience, place));
                place
            }
        };
        if let Some((_, prefixes)) = self.buckets.withdrawn.get_mut(place) {
            prefixes.push(nlri, with_ids);
        }
    }

    /// What was gathered, as messages that are not in the log: for a walk, or for one member alone.
    pub(crate) fn drain(&mut self) -> Vec<Entry> {
        let buckets = std::mem::take(&mut self.buckets);
        let mut entries = Vec::with_capacity(buckets.withdrawn.len() + buckets.announce.len());
        let mut out = BytesMut::new();
        for (audience, prefixes) in buckets.withdrawn {
            make_room(&mut out, &prefixes);
            let packed = self
                .builder
                .withdraw(self.key.family, self.iter(&prefixes), &mut out);
            entries.push(self.entry(out.split(), packed.messages, audience));
        }
        for (attributes, source, prefixes) in buckets.announce {
            if prefixes.count > 0 {
                entries.push(self.encode(&attributes, source, &prefixes, &mut out));
            }
        }
        entries
    }

    fn encode(
        &self,
        attributes: &PathAttributes,
        source: PeerIndex,
        prefixes: &List,
        out: &mut BytesMut,
    ) -> Entry {
        make_room(out, prefixes);
        let packed = self
            .builder
            .announce(self.key.family, attributes, self.iter(prefixes), out);
        self.entry(out.split(), packed.messages, Audience::Except(source))
    }

    #[inline]
    pub(crate) fn with_ids(&self) -> bool {
        self.key.encode.family(self.key.family).add_path
    }

    fn iter<'a>(&self, list: &'a List) -> PrefixIter<'a> {
        PrefixIter::known(&list.bytes, list.count, self.key.family, self.with_ids())
    }

    fn entry(&self, out: BytesMut, messages: usize, audience: Audience) -> Entry {
        Entry {
            bytes: out.freeze(),
            messages: u32::try_from(messages).unwrap_or(u32::MAX),
            audience,
            offset: 0,
        }
    }

    /// Ends the batch: what was gathered becomes log entries. Withdrawals first, so that one prefix in both stays announced.
    pub(crate) fn flush(&mut self, lag_limit: u64) {
        for mut entry in self.drain() {
            entry.offset = self.appended;
            self.appended += entry.bytes.len() as u64;
            self.log.push_back(entry);
        }
        self.drop_laggards(lag_limit);
        self.trim();
    }

    /// Forgets what everybody has read.
    fn trim(&mut self) {
        let slowest = self
            .members
            .values()
            .map(|m| m.cursor)
            .min()
            .unwrap_or_else(|| self.end());
        while self.first < slowest && self.log.pop_front().is_some() {
            self.first += 1;
        }
        if self.log.is_empty() && self.log.capacity() > 1024 {
            self.log = VecDeque::new();
        }
    }

    fn drop_laggards(&mut self, limit: u64) {
        let end = self.end();
        let late: Vec<PeerIndex> = self
            .members
            .iter()
            .filter(|(_, m)| {
                let at = m.cursor.saturating_sub(self.first) as usize;
                self.log
                    .get(at)
                    .is_some_and(|entry| self.appended - entry.offset > limit)
            })
            .map(|(peer, _)| *peer)
            .collect();
        for peer in late {
            let Some(member) = self.members.get_mut(&peer) else {
                continue;
            };
            let at = member.cursor.saturating_sub(self.first) as usize;
            for entry in self
                .log
                .iter()
                .skip(at)
                .filter(|entry| entry.audience.includes(peer))
            {
                paths_of(&entry.bytes, &self.key, &mut member.missed);
            }
            member.cursor = end;
        }
    }

    /// A snapshot that is still being sent to somebody, and which therefore may be shared.
    pub(crate) fn shared_snapshot(&self) -> Option<(Arc<Vec<Entry>>, u64)> {
        let snapshot = self.snapshot.upgrade()?;
        (self.snapshot_at >= self.first).then_some((snapshot, self.snapshot_at))
    }

    /// During a walk: adds a path, and turns a full bucket into messages.
    pub(crate) fn walk_announce(&mut self, nlri: Nlri, bucket: usize, entries: &mut Vec<Entry>) {
        let with_ids = self.with_ids();
        let Some((attributes, source, prefixes)) = self.buckets.announce.get_mut(bucket) else {
            return;
        };
        prefixes.push(nlri, with_ids);
        if prefixes.count >= WALK_BUCKET {
            let (attributes, source, prefixes) = (Arc::clone(attributes), *source, std::mem::take(prefixes));
            entries.push(self.encode(&attributes, source, &prefixes, &mut BytesMut::new()));
        }
    }

    /// Takes a peer in, or sends everything again to one that is in.
    pub(crate) fn join(&mut self, peer: PeerIndex, snapshot: (Arc<Vec<Entry>>, u64), feed: Feed) {
        let (entries, at) = snapshot;
        self.snapshot = Arc::downgrade(&entries);
        self.snapshot_at = at;
        let mut marker = BytesMut::new();
        self.builder.end_of_rib(self.key.family, &mut marker);
        let begin = self.demarcation(RefreshSubtype::Beginning);
        let end = self.demarcation(RefreshSubtype::End);
        let member = self.members.entry(peer).or_insert_with(|| Member {
            cursor: at,
            ..Member::default()
        });
        // A member that asked for a refresh may have read on since the walk that it now gets: it must hear those
        // entries again, or the walk would have the last word on what they changed.
        member.cursor = member.cursor.min(at);
        member.snapshot = Some((entries, 0));
        match feed {
            Feed::First => member.end_of_rib = Some(marker.freeze()),
            // RFC 7313 §4: no BoRR before End-of-RIB.
            Feed::Demarcated if member.end_of_rib.is_none() => {
                member.private.push_back(begin);
                member.end_of_refresh = Some(end.bytes);
            }
            Feed::Demarcated | Feed::Again => {}
        }
    }

    fn demarcation(&self, subtype: RefreshSubtype) -> Entry {
        let mut out = BytesMut::new();
        let afi_safi = self.key.family.afi_safi();
        RouteRefresh { afi_safi, subtype }.encode(&mut out);
        self.entry(out, 1, Audience::Except(LOCAL))
    }

    /// Takes a peer in that was in another group: first what that one still owed it, then the difference.
    pub(crate) fn adopt(&mut self, peer: PeerIndex, mut member: Member, difference: Vec<Entry>) {
        member.private.extend(difference);
        member.cursor = self.end();
        self.members.insert(peer, member);
    }

    /// Lets a peer go, with everything that it has not read made private.
    pub(crate) fn leave(&mut self, peer: PeerIndex) -> Option<Member> {
        let mut member = self.members.remove(&peer)?;
        if let Some((entries, sent)) = member.snapshot.take() {
            let rest = entries
                .iter()
                .skip(sent)
                .filter(|e| e.audience.includes(peer))
                .cloned();
            member.private.extend(rest);
        }
        let at = member.cursor.saturating_sub(self.first) as usize;
        let rest = self
            .log
            .iter()
            .skip(at)
            .filter(|e| e.audience.includes(peer))
            .cloned();
        member.private.extend(rest);
        self.trim();
        Some(member)
    }

    /// The paths a member missed while it did not read; it must now be told about them.
    pub(crate) fn take_missed(&mut self, peer: PeerIndex) -> Option<BTreeSet<Nlri>> {
        let member = self.members.get_mut(&peer)?;
        let caught_up = member.private.is_empty() && member.snapshot.is_none();
        (caught_up && !member.missed.is_empty()).then(|| std::mem::take(&mut member.missed))
    }

    pub(crate) fn push_private(&mut self, peer: PeerIndex, entries: Vec<Entry>) {
        if let Some(member) = self.members.get_mut(&peer) {
            member.private.extend(entries);
        }
    }

    /// What a member has not read: bytes, and paths to be told anew.
    pub(crate) fn backlog(&self, peer: PeerIndex) -> (u64, usize) {
        let Some(member) = self.members.get(&peer) else {
            return (0, 0);
        };
        let private: usize = member.private.iter().map(|entry| entry.bytes.len()).sum();
        let walk: usize = member.snapshot.as_ref().map_or(0, |(entries, sent)| {
            let rest = entries.iter().skip(*sent);
            rest.map(|entry| entry.bytes.len()).sum()
        });
        let at = member.cursor.saturating_sub(self.first) as usize;
        let log = self.log.get(at).map_or(0, |entry| self.appended - entry.offset);
        (private as u64 + walk as u64 + log, member.missed.len())
    }

    /// Whether a member has something to read. `hold_end` keeps back End-of-RIB.
    pub(crate) fn has_output(&self, peer: PeerIndex, hold_end: bool) -> bool {
        self.members.get(&peer).is_some_and(|m| {
            !m.private.is_empty()
                || m.snapshot.is_some()
                || m.end_of_rib.is_some() && !hold_end
                || m.end_of_refresh.is_some()
                || !m.missed.is_empty()
                || m.cursor < self.end()
        })
    }

    /// The next bytes for a member, up to about `max`.
    pub(crate) fn read(&mut self, peer: PeerIndex, max: usize, hold_end: bool, out: &mut Vec<Bytes>) -> u64 {
        let end = self.end();
        let Some(member) = self.members.get_mut(&peer) else {
            return 0;
        };
        let mut bytes: usize = out.iter().map(Bytes::len).sum();
        let mut messages = 0_u64;
        let mut take = |entry: &Entry, bytes: &mut usize| {
            *bytes += entry.bytes.len();
            messages += u64::from(entry.messages);
            out.push(entry.bytes.clone());
        };
        while bytes < max {
            let Some(entry) = member.private.pop_front() else {
                break;
            };
            take(&entry, &mut bytes);
        }
        if let Some((entries, sent)) = &mut member.snapshot {
            while bytes < max {
                let Some(entry) = entries.get(*sent) else { break };
                *sent += 1;
                if entry.audience.includes(peer) {
                    take(entry, &mut bytes);
                }
            }
            if *sent >= entries.len() {
                member.snapshot = None;
            }
        }
        if member.snapshot.is_some() || !member.private.is_empty() {
            return messages;
        }
        if !hold_end && let Some(marker) = member.end_of_rib.take() {
            bytes += marker.len();
            messages += 1;
            out.push(marker);
        }
        if let Some(marker) = member.end_of_refresh.take() {
            bytes += marker.len();
            messages += 1;
            out.push(marker);
        }
        let before = member.cursor;
        let mut take = |entry: &Entry, bytes: &mut usize| {
            *bytes += entry.bytes.len();
            messages += u64::from(entry.messages);
            out.push(entry.bytes.clone());
        };
        while bytes < max && member.cursor < end {
            let at = member.cursor.saturating_sub(self.first) as usize;
            let Some(entry) = self.log.get(at) else { break };
            member.cursor += 1;
            if entry.audience.includes(peer) {
                take(entry, &mut bytes);
            }
        }
        if before == self.first && member.cursor > before {
            self.trim();
        }
        messages
    }
}

/// Collects the paths in messages of our own making.
fn paths_of(bytes: &[u8], key: &GroupKey, into: &mut BTreeSet<Nlri>) {
    let family = FamilyContext {
        negotiated: true,
        add_path: key.encode.family(key.family).add_path,
        extended_next_hop: true,
    };
    let context = DecodeContext {
        four_octet_as: key.encode.four_octet_as,
        ebgp: key.encode.ebgp,
        extended_messages: key.encode.extended_messages,
        allow_as_set: true,
        max_as_path_hops: usize::MAX,
        ipv4: family,
        ipv6: family,
    };
    let mut rest = bytes;
    while let Ok(Some((length, _))) = frame(rest, context.max_message_length()) {
        let (message, tail) = rest.split_at(length.clamp(HEADER_LENGTH, rest.len()));
        rest = tail;
        let Ok(Message::Update(update)) = Message::decode(message, &context) else {
            continue;
        };
        for list in update.withdrawals() {
            into.extend(list);
        }
        for announcement in update.announcements() {
            into.extend(announcement.prefixes);
        }
    }
}
