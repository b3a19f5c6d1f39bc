//! What happens, gathered as messages for all stations, each piece marked with the part of the world that it is about. What is
//! gathered between two calls of [`Monitor::take`] goes to each station that wants the part.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use serde::Serialize;

use super::{PeerHeader, route_monitoring_each};
use crate::config::Family;
use crate::rib::Given;
use crate::wire::{EncodeContext, FamilyContext, NextHop, Nlri, PathAttributes, UpdateBuilder};

/// What a piece is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Peers that come and go, and their statistics: for everybody.
    Peers,
    /// What peers said.
    PrePolicy,
    /// What import filters made of it.
    PostPolicy,
    /// What peers are given, after export filters (RFC 8671).
    AdjRibOut,
    /// The best path of each destination.
    LocRib,
}

/// Which parts somebody wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Parts {
    /// What peers said. It is not kept: peers are asked for it again when a station comes (RFC 2918).
    pub pre_policy: bool,
    /// What import filters made of it.
    pub post_policy: bool,
    /// What peers are given, after export filters (RFC 8671): as it is sent to them.
    pub adj_rib_out: bool,
    /// The best path of each destination (RFC 9069).
    pub loc_rib: bool,
}

impl Parts {
    /// Whether this part is wanted.
    pub fn wants(self, part: Part) -> bool {
        match part {
            Part::Peers => true,
            Part::PrePolicy => self.pre_policy,
            Part::PostPolicy => self.post_policy,
            Part::AdjRibOut => self.adj_rib_out,
            Part::LocRib => self.loc_rib,
        }
    }

    /// What either wants.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            pre_policy: self.pre_policy || other.pre_policy,
            post_policy: self.post_policy || other.post_policy,
            adj_rib_out: self.adj_rib_out || other.adj_rib_out,
            loc_rib: self.loc_rib || other.loc_rib,
        }
    }
}

/// See the head of the file.
#[derive(Debug, Default)]
pub(crate) struct Monitor {
    pub(crate) parts: Parts,
    /// The time now, since 1970.
    pub(crate) time: Duration,
    pieces: Vec<(Part, BytesMut)>,
}

/// Paths by their attributes, in the order of first appearance.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    places: HashMap<usize, usize>,
    groups: Vec<(Arc<PathAttributes>, Vec<Nlri>)>,
}

impl Groups {
    /// Adds a path. Sets are told apart by their place in memory, which is as good as their content: they are interned.
    pub(crate) fn push(&mut self, attributes: &Arc<PathAttributes>, nlri: Nlri) {
        let groups = &mut self.groups;
        let place = *self
            .places
            .entry(Arc::as_ptr(attributes) as usize)
            .or_insert_with(|| {
                groups.push((Arc::clone(attributes), Vec::new()));
                groups.len() - 1
            });
        if let Some((_, list)) = groups.get_mut(place) {
            list.push(nlri);
        }
    }
}

/// How UPDATEs of a session are written for stations: as that session would carry them, with four octets for an AS.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Writing {
    pub(crate) peer: PeerHeader,
    pub(crate) external: bool,
    /// Path identifiers in IPv4 and IPv6.
    pub(crate) add_path: [bool; 2],
}

impl Writing {
    fn builder(&self, attributes: Option<&PathAttributes>) -> UpdateBuilder {
        let [v4, v6] = self.add_path;
        let family = |add_path| FamilyContext {
            negotiated: true,
            add_path,
            extended_next_hop: true,
        };
        // What belongs inside an AS is written where it is there: an import filter may have set it.
        let inner = attributes.is_some_and(|a| a.local_pref.is_some() || a.originator_id.is_some());
        UpdateBuilder::new(EncodeContext {
            four_octet_as: true,
            ebgp: self.external && !inner,
            extended_messages: false,
            ipv4: family(v4),
            ipv6: family(v6),
        })
    }

    fn wrap(&self, updates: &[u8], out: &mut BytesMut) {
        route_monitoring_each(out, &self.peer, updates);
    }

    /// Appends withdrawals.
    pub(crate) fn withdraw(&self, gone: &[Nlri], out: &mut BytesMut) {
        let mut updates = BytesMut::new();
        for family in Family::ALL {
            self.builder(None)
                .withdraw(family, gone.iter().copied(), &mut updates);
        }
        self.wrap(&updates, out);
    }

    /// Appends announcements.
    pub(crate) fn announce(&self, groups: &Groups, out: &mut BytesMut) {
        let mut updates = BytesMut::new();
        for (attributes, list) in &groups.groups {
            self.announce_list(attributes, list.iter().copied(), &mut updates);
        }
        self.wrap(&updates, out);
    }

    fn announce_list(
        &self,
        attributes: &PathAttributes,
        list: impl Iterator<Item = Nlri> + Clone,
        updates: &mut BytesMut,
    ) {
        for family in Family::ALL {
            // Nobody is the next hop of our own routes.
            let own;
            let attributes = if attributes.next_hop.is_none() {
                own = attributes.clone().with_next_hop(nobody(family));
                &own
            } else {
                attributes
            };
            self.builder(Some(attributes))
                .announce(family, attributes, list.clone(), updates);
        }
    }

    /// Appends the announcement of one list.
    pub(crate) fn announce_one(
        &self,
        attributes: &PathAttributes,
        list: impl Iterator<Item = Nlri> + Clone,
        out: &mut BytesMut,
    ) {
        let mut updates = BytesMut::new();
        self.announce_list(attributes, list, &mut updates);
        self.wrap(&updates, out);
    }

    /// Appends the End-of-RIB of a family.
    pub(crate) fn end_of_rib(&self, family: Family, out: &mut BytesMut) {
        let mut update = BytesMut::new();
        self.builder(None).end_of_rib(family, &mut update);
        self.wrap(&update, out);
    }
}

fn nobody(family: Family) -> NextHop {
    match family {
        Family::Ipv4Unicast => NextHop::V4(std::net::Ipv4Addr::UNSPECIFIED),
        Family::Ipv6Unicast => NextHop::V6 {
            address: std::net::Ipv6Addr::UNSPECIFIED,
            link_local: None,
        },
    }
}

/// What a peer had been given when a station came. The messages are those of its update group, shared with all members and
/// with all stations; they are written as the station takes them.
#[derive(Clone, Debug)]
pub struct GivenTable {
    pub(crate) writing: Writing,
    pub(crate) family: Family,
    pub(crate) given: Given,
}

impl GivenTable {
    /// The table in pieces of some kilobytes, with End-of-RIB.
    pub fn pieces(&self) -> impl Iterator<Item = Bytes> + '_ {
        let updates = self.given.messages().map(|messages| {
            let mut out = BytesMut::new();
            route_monitoring_each(&mut out, &self.writing.peer, messages);
            out.freeze()
        });
        let mut end = BytesMut::new();
        self.writing.end_of_rib(self.family, &mut end);
        updates.chain([end.freeze()])
    }
}

impl Monitor {
    /// Adds to a part.
    pub(crate) fn add(&mut self, part: Part, write: impl FnOnce(&mut BytesMut)) {
        if !self.parts.wants(part) {
            return;
        }
        match self.pieces.last_mut() {
            Some((last, piece)) if *last == part => write(piece),
            _ => {
                let mut piece = BytesMut::new();
                write(&mut piece);
                self.pieces.push((part, piece));
            }
        }
    }

    /// What was gathered since the last call.
    pub(crate) fn take(&mut self) -> Vec<(Part, Bytes)> {
        let pieces = std::mem::take(&mut self.pieces).into_iter();
        pieces
            .filter(|(_, piece)| !piece.is_empty())
            .map(|(part, piece)| (part, piece.freeze()))
            .collect()
    }
}
