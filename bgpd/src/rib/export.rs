//! What a route becomes on its way out, as a pure function of the route and of the *update group*.
//!
//! A group is all peers of one family whose UPDATEs are the same bytes. [`GroupKey`] names everything those bytes depend on, so
//! "same key" is "same group" and nothing else has to be kept in step. Because the function is pure, what a group was told
//! about a prefix can be worked out again from the path that was used then: no Adj-RIB-Out is stored.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnetwork::IpNetwork;

use crate::config::{Family, Filter, NextHopMode};
use crate::filter::{AttributeView, Community, Operation, PeerType, RouteSource, RouteView, Verdict};
use crate::rib::attributes::apply;
use crate::rib::decision::DEFAULT_LOCAL_PREF;
use crate::wire::{self, EncodeContext, NextHop, PathAttributes, Prefix, Role};

/// Everything that changes the bytes sent.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GroupKey {
    /// One family a group.
    pub family: Family,
    /// How messages are written.
    pub encode: EncodeContext,
    /// Inside or outside.
    pub peer_type: PeerType,
    /// The AS we are to these peers.
    pub local_asn: u32,
    /// Members are our clients as route reflector.
    pub rr_client: bool,
    /// Put into CLUSTER_LIST when reflecting.
    pub cluster_id: Ipv4Addr,
    /// Which next hop they get.
    pub next_hop: NextHopMode,
    /// Our own IPv4 address as a next hop.
    pub self_v4: Option<Ipv4Addr>,
    /// Our own IPv6 address as a next hop; on a link without others, the link's.
    pub self_v6: Option<Ipv6Addr>,
    /// Our address on the link that the peers are on, when they are spoken to at theirs (RFC 2545 §3).
    pub self_link_local: Option<Ipv6Addr>,
    /// The export filter.
    pub filter: Arc<Filter>,
    /// So many of the best paths of a prefix, each with its identifier, when `encode` has ADD-PATH; else 1.
    pub paths: usize,
    /// We are being taken out of service (RFC 8326).
    pub drain: bool,
    /// What we are to these peers (RFC 9234).
    pub role: Option<Role>,
    /// They know LLGR_STALE (RFC 9494).
    pub long_lived: bool,
}

/// Who a path came from, as far as export cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source<'a> {
    /// Originated here.
    pub local: bool,
    /// Inside or outside.
    pub peer_type: PeerType,
    /// It is our client as route reflector.
    pub rr_client: bool,
    /// Its BGP Identifier, which becomes the ORIGINATOR_ID when we reflect.
    pub router_id: u32,
    /// The interface that its routes go through, where that is known.
    pub device: Option<&'a str>,
}

/// Why a peer is not given a route that we use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Withheld {
    /// It came from that peer.
    Source,
    /// RFC 1997.
    NoAdvertise,
    /// RFC 1997.
    NoExport,
    /// RFC 9494 §4.3.
    LongLivedStale,
    /// RFC 9234 §5.
    OnlyToCustomer,
    /// RFC 4271 §9.2: learned inside the AS, and we reflect to neither side.
    NotReflected,
    /// By that rule of the export filter, or by its default.
    Filter(Option<usize>),
    /// We have no next hop that it could use for the family.
    NextHop,
}

impl std::fmt::Display for Withheld {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Source => "it is this peer's own",
            Self::NoAdvertise => "community no-advertise",
            Self::NoExport => "community no-export",
            Self::LongLivedStale => "long-lived stale, and the peer does not know what that is (RFC 9494)",
            Self::OnlyToCustomer => "for customers only (OTC, RFC 9234)",
            Self::NotReflected => "learned inside the AS, and neither side is a route reflector client",
            Self::Filter(Some(rule)) => return write!(f, "export filter, rule {}", rule + 1),
            Self::Filter(None) => "export filter, default action",
            Self::NextHop => "no next hop of ours for this family (next-hop-v4, next-hop-v6)",
        })
    }
}

impl GroupKey {
    /// Whether the group may have the route at all, and by which rule of the filter. None: it may not.
    pub fn admits(
        &self,
        prefix: Prefix,
        attributes: &PathAttributes,
        source: &Source<'_>,
    ) -> Option<Option<usize>> {
        self.verdict(prefix, attributes, source).ok()
    }

    /// As [`GroupKey::admits`], with the reason when it may not.
    ///
    /// # Errors
    /// The reason.
    pub fn verdict(
        &self,
        prefix: Prefix,
        attributes: &PathAttributes,
        source: &Source<'_>,
    ) -> Result<Option<usize>, Withheld> {
        // RFC 1997. NO_EXPORT_SUBCONFED is the same as NO_EXPORT without confederations.
        if AttributeView::has_community(attributes, Community::NO_ADVERTISE) {
            return Err(Withheld::NoAdvertise);
        }
        let stays = [Community::NO_EXPORT, Community::NO_EXPORT_SUBCONFED];
        if self.peer_type == PeerType::Ebgp
            && stays.iter().any(|c| AttributeView::has_community(attributes, *c))
        {
            return Err(Withheld::NoExport);
        }
        // RFC 9494 §4.3: those who do not know better would use it like any other.
        if !self.long_lived && attributes.communities.contains(&wire::Community::LLGR_STALE) {
            return Err(Withheld::LongLivedStale);
        }
        // RFC 9234 §5: what is for customers only goes to nobody else.
        let upwards = matches!(
            self.role,
            Some(Role::Customer | Role::Peer | Role::RouteServerClient)
        );
        if upwards && attributes.only_to_customer.is_some() {
            return Err(Withheld::OnlyToCustomer);
        }
        // RFC 4271 §9.2, RFC 4456 §6: between two iBGP peers only a reflector carries routes, and one of them is its client.
        let inside = self.peer_type == PeerType::Ibgp;
        let reflects = !source.local && source.peer_type == PeerType::Ibgp && inside;
        if reflects && !source.rr_client && !self.rr_client {
            return Err(Withheld::NotReflected);
        }
        let view = RouteView {
            prefix: IpNetwork::from(prefix),
            attributes,
            source: if source.local {
                RouteSource::Local
            } else {
                RouteSource::Peer
            },
            interface: source.device,
            peer_type: self.peer_type,
        };
        match self.filter.verdict(&view) {
            Verdict::Accept { rule } => Ok(rule),
            Verdict::Reject { rule } => Err(Withheld::Filter(rule)),
        }
    }

    /// The attributes as the group gets them; none when there is no next hop that it could use.
    pub fn transform(
        &self,
        attributes: &PathAttributes,
        source: &Source<'_>,
        rule: Option<usize>,
    ) -> Option<PathAttributes> {
        let mut out = attributes.clone();
        let outside = self.peer_type == PeerType::Ebgp;
        let learned = !source.local;
        let operations = self.filter.operations(rule);
        let mode = match operations.contains(&Operation::NextHopSelf) {
            true => NextHopMode::SelfAddress,
            false => self.next_hop,
        };
        out.next_hop = Some(self.next_hop_for(mode, attributes, source)?);
        if outside {
            // RFC 4271 §5.1.2 b, §5.1.4 (MED received is not passed to a third AS), §5.1.5; RFC 4456 §8.
            if learned {
                out.med = None;
            }
            out.local_pref = None;
            out.originator_id = None;
            out.cluster_list.clear();
            out.aigp = None;
        } else {
            out.local_pref.get_or_insert(DEFAULT_LOCAL_PREF);
            if learned && source.peer_type == PeerType::Ibgp {
                // RFC 4456 §8.
                out.originator_id
                    .get_or_insert(Ipv4Addr::from_bits(source.router_id));
                out.cluster_list.insert(0, self.cluster_id);
            }
        }
        // The filter's word comes after what the protocol changes, so that a MED it sets is the MED that is sent; a
        // prepend goes behind our own AS number, which must stay first (RFC 4271 §5.1.2).
        apply(operations, &mut out);
        if outside {
            out.as_path.prepend(self.local_asn, 1);
            out.local_pref = None;
        }
        if matches!(self.role, Some(Role::Provider | Role::Peer | Role::RouteServer)) {
            out.only_to_customer.get_or_insert(self.local_asn);
        }
        if self.drain {
            // RFC 8326 §4.1; inside the AS the community alone moves nobody.
            out.add_community(wire::Community::GRACEFUL_SHUTDOWN);
            if !outside {
                out.local_pref = Some(0);
            }
        }
        out.fits(self.family, self.encode.family(self.family).extended_next_hop)
            .then_some(out)
    }

    fn next_hop_for(
        &self,
        mode: NextHopMode,
        attributes: &PathAttributes,
        source: &Source<'_>,
    ) -> Option<NextHop> {
        let given = attributes.next_hop;
        let keep = match mode {
            NextHopMode::SelfAddress => false,
            // What we originate has a next hop only when somebody asked for one.
            NextHopMode::Keep => true,
            NextHopMode::Auto => source.local || self.peer_type == PeerType::Ibgp,
        };
        match given {
            // An address of some link means nothing elsewhere.
            Some(next_hop) if keep && !is_of_link(next_hop) => return Some(next_hop.address().into()),
            _ => {}
        }
        let v6 = || {
            self.self_v6.map(|address| NextHop::V6 {
                address,
                link_local: self.self_link_local,
            })
        };
        match self.family {
            Family::Ipv4Unicast => match self.self_v4 {
                Some(address) => Some(NextHop::V4(address)),
                None if self.encode.ipv4.extended_next_hop => v6(),
                None => None,
            },
            Family::Ipv6Unicast => v6(),
        }
    }
}

fn is_of_link(next_hop: NextHop) -> bool {
    matches!(next_hop, NextHop::V6 { address, .. } if address.is_unicast_link_local())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::{Action, Operation, PrefixMatch, Rule};
    use crate::wire::AsPath;

    pub(crate) fn key(peer_type: PeerType) -> GroupKey {
        GroupKey {
            family: Family::Ipv4Unicast,
            encode: EncodeContext {
                ebgp: peer_type == PeerType::Ebgp,
                ..EncodeContext::default()
            },
            peer_type,
            local_asn: 65000,
            rr_client: false,
            cluster_id: [1, 1, 1, 1].into(),
            next_hop: NextHopMode::Auto,
            self_v4: Some([10, 0, 0, 1].into()),
            self_v6: None,
            self_link_local: None,
            filter: Arc::new(Filter::accept()),
            paths: 1,
            drain: false,
            role: None,
            long_lived: false,
        }
    }

    fn route() -> PathAttributes {
        PathAttributes {
            as_path: AsPath::sequence([65001]),
            next_hop: Some(std::net::IpAddr::from([10, 9, 9, 9]).into()),
            med: Some(7),
            local_pref: Some(200),
            ..Default::default()
        }
    }

    const EBGP: Source<'_> = Source {
        local: false,
        peer_type: PeerType::Ebgp,
        rr_client: false,
        router_id: 9,
        device: None,
    };
    const IBGP: Source<'_> = Source {
        peer_type: PeerType::Ibgp,
        ..EBGP
    };
    const CLIENT: Source<'_> = Source {
        rr_client: true,
        ..IBGP
    };
    const LOCAL: Source<'_> = Source { local: true, ..EBGP };

    fn prefix() -> Prefix {
        Prefix::from("10.1.0.0/24".parse::<IpNetwork>().unwrap())
    }

    #[test]
    fn a_rule_may_ask_where_a_route_came_in_and_give_ourselves_as_its_next_hop() {
        let mut group = key(PeerType::Ibgp);
        let mut rule = Rule::new(Action::Accept);
        rule.interface = Some(crate::filter::InterfacePattern::new("cali*"));
        rule.operations = vec![Operation::NextHopSelf];
        let mut filter = Filter::reject();
        filter.rules = vec![rule];
        group.filter = Arc::new(filter);
        let from = |device| Source { device, ..EBGP };
        let admitted = |source: &Source<'_>| group.admits(prefix(), &route(), source);
        assert_eq!(admitted(&from(Some("cali0a1b"))), Some(Some(0)));
        assert_eq!(admitted(&from(Some("eth0"))), None);
        assert_eq!(admitted(&from(None)), None);
        assert_eq!(admitted(&LOCAL), None, "our own has no interface");
        let sent = group.transform(&route(), &from(Some("cali0a1b")), Some(0));
        assert_eq!(sent.unwrap().next_hop.unwrap().address().to_string(), "10.0.0.1");
        let kept = group.transform(&route(), &from(Some("cali0a1b")), None);
        assert_eq!(kept.unwrap().next_hop.unwrap().address().to_string(), "10.9.9.9");
    }

    #[test]
    fn ebgp_gets_our_as_our_address_and_no_inner_attributes() {
        let out = key(PeerType::Ebgp).transform(&route(), &EBGP, None).unwrap();
        assert_eq!(out.as_path.to_string(), "65000 65001");
        assert_eq!(out.next_hop.unwrap().address().to_string(), "10.0.0.1");
        assert_eq!((out.med, out.local_pref), (None, None));
    }

    #[test]
    fn a_route_of_our_own_keeps_the_med_and_next_hop_it_was_given() {
        let out = key(PeerType::Ebgp).transform(&route(), &LOCAL, None).unwrap();
        assert_eq!(
            (out.med, out.next_hop.unwrap().address().to_string()),
            (Some(7), "10.9.9.9".into())
        );
    }

    #[test]
    fn ibgp_keeps_next_hop_and_gets_a_local_pref() {
        let mut given = route();
        given.local_pref = None;
        let out = key(PeerType::Ibgp).transform(&given, &EBGP, None).unwrap();
        assert_eq!(out.as_path.to_string(), "65001");
        assert_eq!((out.local_pref, out.med), (Some(100), Some(7)));
        assert_eq!(out.next_hop, given.next_hop);
        assert_eq!((out.originator_id, out.cluster_list.len()), (None, 0));
        let own = GroupKey {
            next_hop: NextHopMode::SelfAddress,
            ..key(PeerType::Ibgp)
        };
        assert_eq!(
            own.transform(&given, &EBGP, None)
                .unwrap()
                .next_hop
                .unwrap()
                .address()
                .to_string(),
            "10.0.0.1"
        );
    }

    #[test]
    fn only_a_reflector_carries_routes_between_ibgp_peers() {
        let plain = key(PeerType::Ibgp);
        let clients = GroupKey {
            rr_client: true,
            ..key(PeerType::Ibgp)
        };
        let sees = |group: &GroupKey, source| group.admits(prefix(), &route(), source).is_some();
        assert!(!sees(&plain, &IBGP));
        assert!(sees(&plain, &CLIENT) && sees(&clients, &IBGP) && sees(&clients, &CLIENT));
        assert!(sees(&plain, &EBGP) && sees(&plain, &LOCAL) && sees(&key(PeerType::Ebgp), &IBGP));
        let out = clients.transform(&route(), &IBGP, None).unwrap();
        assert_eq!(out.originator_id, Some(Ipv4Addr::from_bits(9)));
        assert_eq!(out.cluster_list[..], [Ipv4Addr::from([1, 1, 1, 1])]);
        let again = clients.transform(&out, &CLIENT, None).unwrap();
        assert_eq!(
            again.originator_id,
            Some(Ipv4Addr::from_bits(9)),
            "the first originator stays"
        );
        assert_eq!(again.cluster_list.len(), 2);
    }

    #[test]
    fn well_known_communities_are_honoured() {
        let sees = |community, peer_type| {
            let mut given = route();
            given.add_community(community);
            key(peer_type).admits(prefix(), &given, &EBGP).is_some()
        };
        use crate::wire::Community as C;
        assert!(!sees(C::NO_ADVERTISE, PeerType::Ibgp) && !sees(C::NO_ADVERTISE, PeerType::Ebgp));
        assert!(sees(C::NO_EXPORT, PeerType::Ibgp) && !sees(C::NO_EXPORT, PeerType::Ebgp));
        assert!(!sees(C::NO_EXPORT_SUBCONFED, PeerType::Ebgp));
        assert!(sees(C::BLACKHOLE, PeerType::Ebgp));
    }

    #[test]
    fn the_filter_sees_the_route_as_it_was_and_prepends_behind_our_as() {
        let mut rule = Rule::new(Action::Accept);
        rule.prefix = Some(PrefixMatch::within("10.1.0.0/16".parse().unwrap()));
        rule.as_path_prefix = vec![65001];
        rule.operations = vec![Operation::PrependAsPath(vec![65000, 65000]), Operation::SetMed(3)];
        let filter = Filter {
            rules: vec![rule],
            default: Action::Reject,
        };
        let group = GroupKey {
            filter: Arc::new(filter),
            ..key(PeerType::Ebgp)
        };
        let rule = group.admits(prefix(), &route(), &EBGP).unwrap();
        let out = group.transform(&route(), &EBGP, rule).unwrap();
        assert_eq!(
            (out.as_path.to_string(), out.med),
            ("65000 65000 65000 65001".into(), Some(3))
        );
        let other = Prefix::from("10.2.0.0/24".parse::<IpNetwork>().unwrap());
        assert_eq!(group.admits(other, &route(), &EBGP), None);
    }

    /// RFC 9234 §5.
    #[test]
    fn what_is_for_customers_only_goes_down_and_is_marked_on_its_way() {
        let to = |role| GroupKey {
            role: Some(role),
            ..key(PeerType::Ebgp)
        };
        let mut marked = route();
        marked.only_to_customer = Some(65001);
        for (role, passes, mark) in [
            (Role::Provider, true, Some(65000)),
            (Role::RouteServer, true, Some(65000)),
            (Role::Peer, false, Some(65000)),
            (Role::Customer, false, None),
            (Role::RouteServerClient, false, None),
        ] {
            let group = to(role);
            assert_eq!(
                group.admits(prefix(), &marked, &EBGP).is_some(),
                passes,
                "{role:?}"
            );
            assert!(group.admits(prefix(), &route(), &EBGP).is_some());
            let out = group.transform(&route(), &EBGP, None).unwrap();
            assert_eq!(out.only_to_customer, mark, "{role:?}");
            let kept = group.transform(&marked, &EBGP, None).unwrap();
            assert_eq!(kept.only_to_customer, Some(65001));
        }
    }

    /// RFC 8326, RFC 9494 §4.3.
    #[test]
    fn a_drained_speaker_says_so_and_stale_routes_go_to_those_who_understand() {
        let drained = |peer_type| GroupKey {
            drain: true,
            ..key(peer_type)
        };
        let out = drained(PeerType::Ebgp).transform(&route(), &EBGP, None).unwrap();
        assert!(out.communities.contains(&wire::Community::GRACEFUL_SHUTDOWN));
        assert_eq!(out.local_pref, None);
        let out = drained(PeerType::Ibgp).transform(&route(), &EBGP, None).unwrap();
        assert_eq!(out.local_pref, Some(0));

        let mut stale = route();
        stale.add_community(wire::Community::LLGR_STALE);
        let mut group = key(PeerType::Ibgp);
        assert_eq!(group.admits(prefix(), &stale, &EBGP), None);
        group.long_lived = true;
        assert!(group.admits(prefix(), &stale, &EBGP).is_some());
    }

    #[test]
    fn without_an_address_of_the_family_nothing_is_sent() {
        let mut group = GroupKey {
            self_v4: None,
            ..key(PeerType::Ebgp)
        };
        assert_eq!(group.transform(&route(), &EBGP, None), None);
        group.self_v6 = Some("fd00::1".parse().unwrap());
        group.encode.ipv4.extended_next_hop = true;
        let out = group.transform(&route(), &EBGP, None).unwrap();
        assert_eq!(out.next_hop.unwrap().address().to_string(), "fd00::1");
    }
}
