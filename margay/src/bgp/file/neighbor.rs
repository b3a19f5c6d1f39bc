//! `[[neighbor]]`: a peer, or the template of a range.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Context as _, bail};
use bgpd::NextHop;
use bgpd::config::{
    Bfd, Family, NextHopMode, PeerAs, PeerConfig, PeerRange, Role, Secret, SpeakerConfig, Ttl,
};
use bgpd::filter::Filter;
use ipnetwork::IpNetwork;
use serde::Deserialize;

use super::without_host_bits;

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "an AS number, \"external\", \"internal\" or \"any\"")]
enum AsWord {
    Number(u32),
    Word(AsKind),
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum AsKind {
    External,
    Internal,
    Any,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum FamilyWord {
    #[serde(alias = "ipv4-unicast")]
    Ipv4,
    #[serde(alias = "ipv6-unicast")]
    Ipv6,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(
    untagged,
    expecting = "true, false, \"none\", \"receive\", \"send\" or \"both\""
)]
enum AddPathSetting {
    Switch(bool),
    Word(AddPathWord),
}

impl From<AddPathSetting> for AddPathWord {
    fn from(setting: AddPathSetting) -> Self {
        match setting {
            AddPathSetting::Switch(true) => Self::Both,
            AddPathSetting::Switch(false) => Self::None,
            AddPathSetting::Word(word) => word,
        }
    }
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum AddPathWord {
    None,
    Receive,
    Send,
    Both,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum RoleWord {
    Provider,
    RouteServer,
    RouteServerClient,
    Customer,
    Peer,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum NextHopWord {
    Auto,
    #[serde(rename = "self")]
    SelfAddress,
    Keep,
}

#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "true, false, or a table with min-rx, min-tx (milliseconds), multiplier, multihop, strict and hold-time (seconds)"
)]
enum BfdWord {
    Switch(bool),
    Table(BfdTable),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct BfdTable {
    min_rx: Option<u64>,
    min_tx: Option<u64>,
    multiplier: Option<u8>,
    #[serde(default)]
    multihop: bool,
    #[serde(default)]
    strict: bool,
    hold_time: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Neighbor {
    name: Option<String>,
    description: Option<String>,
    address: Option<NextHop>,
    interface: Option<String>,
    device: Option<String>,
    range: Option<IpNetwork>,
    limit: Option<usize>,
    asn: AsWord,
    port: Option<u16>,
    local_asn: Option<u32>,
    local_address: Option<IpAddr>,
    #[serde(default)]
    passive: bool,
    #[serde(default)]
    shutdown: bool,
    hold_time: Option<u64>,
    keepalive: Option<u64>,
    connect_retry: Option<u64>,
    families: Option<Vec<FamilyWord>>,
    next_hop: Option<NextHopWord>,
    next_hop_v4: Option<Ipv4Addr>,
    next_hop_v6: Option<Ipv6Addr>,
    #[serde(default)]
    route_reflector_client: bool,
    ttl: Option<u8>,
    ttl_security: Option<u8>,
    password_file: Option<String>,
    #[serde(default)]
    allow_own_as: u8,
    max_prefix: Option<u32>,
    max_prefix_restart: Option<u64>,
    #[serde(default)]
    max_prefix_warning_only: bool,
    add_path: Option<AddPathSetting>,
    add_path_count: Option<u8>,
    graceful_restart: Option<bool>,
    restart_time: Option<u64>,
    #[serde(default)]
    extended_messages: bool,
    bfd: Option<BfdWord>,
    role: Option<RoleWord>,
    #[serde(default)]
    strict_role: bool,
    import: Option<String>,
    export: Option<String>,
}

/// Paths a prefix when a neighbour is to be given several and nobody says how many.
const ADD_PATH_COUNT: u8 = 8;

/// What neighbors are read with.
pub(super) struct Reading<'a> {
    pub(super) filters: &'a BTreeMap<String, Filter>,
    /// The content of a password file.
    pub(super) password: &'a dyn Fn(&str) -> anyhow::Result<String>,
    /// What is allowed and probably not meant.
    pub(super) warnings: Vec<String>,
}

impl Neighbor {
    /// Adds it to the speaker's peers or ranges.
    pub(super) fn put(&self, config: &mut SpeakerConfig, reading: &mut Reading<'_>) -> anyhow::Result<()> {
        let who = match (&self.name, &self.address, &self.range, &self.interface) {
            (Some(name), ..) => name.clone(),
            (None, Some(address), ..) => address.to_string(),
            (None, None, Some(range), _) => range.to_string(),
            (None, None, None, Some(interface)) => interface.clone(),
            (None, None, None, None) => bail!("a neighbor has neither address nor range nor interface"),
        };
        let of_it = || format!("neighbor {who}");
        let made = self.peer(&who, config.asn, reading).with_context(of_it)?;
        let placed = self.address.is_some() || self.interface.is_some();
        match (placed, self.range) {
            (true, None) if self.limit.is_some() => bail!("neighbor {who}: limit belongs to a range"),
            (true, None) => config.peers.push(made),
            (false, Some(range)) => config.ranges.push(PeerRange {
                network: without_host_bits(range).with_context(of_it)?,
                limit: self.limit.unwrap_or(PeerRange::LIMIT),
                template: made,
            }),
            _ => bail!("neighbor {who}: give either address, interface, or range"),
        }
        Ok(())
    }

    fn peer(&self, who: &str, our_asn: u32, reading: &mut Reading<'_>) -> anyhow::Result<PeerConfig> {
        let mut peer = self.placed(who)?;
        self.session(&mut peer, reading)?;
        self.limits(&mut peer)?;
        self.add_path(&mut peer)?;
        peer.bfd = self.bfd()?;
        self.role(&mut peer)?;
        self.policy(&mut peer, who, our_asn, reading)?;
        Ok(peer)
    }

    /// Where it is, and which AS it may be.
    fn placed(&self, who: &str) -> anyhow::Result<PeerConfig> {
        let asn = match self.asn {
            AsWord::Number(number) => PeerAs::Fixed(number),
            AsWord::Word(AsKind::External) => PeerAs::External,
            AsWord::Word(AsKind::Internal) => PeerAs::Internal,
            AsWord::Word(AsKind::Any) => PeerAs::Any,
        };
        // A template has the network's address, which is never connected to.
        let given = self.address.as_ref();
        let of_address = given.and_then(|given| given.interface.as_deref());
        let interface = self.interface.as_deref();
        if interface.is_some() && of_address.is_some_and(|named| Some(named) != interface) {
            bail!("address and interface name different links");
        }
        Ok(match (given, self.range, interface.or(of_address)) {
            (Some(given), _, interface) => PeerConfig {
                interface: interface.map(str::to_owned),
                ..PeerConfig::new(who, given.address, asn)
            },
            (None, Some(range), _) => PeerConfig::new(who, range.ip(), asn),
            (None, None, Some(interface)) => PeerConfig::unnumbered(who, interface, asn),
            (None, None, None) => bail!("neither address nor range nor interface"),
        })
    }

    /// What is said in the OPEN or belongs to the socket, and timers.
    fn session(&self, peer: &mut PeerConfig, reading: &Reading<'_>) -> anyhow::Result<()> {
        peer.description = self.description.clone().unwrap_or_default();
        peer.device.clone_from(&self.device);
        peer.port = self.port.unwrap_or(peer.port);
        peer.local_asn = self.local_asn;
        peer.local_address = self.local_address;
        peer.passive = self.passive;
        peer.shutdown = self.shutdown;
        let seconds = |given: Option<u64>, default| given.map_or(default, Duration::from_secs);
        peer.hold_time = seconds(self.hold_time, peer.hold_time);
        peer.keepalive = self.keepalive.map(Duration::from_secs);
        peer.connect_retry = seconds(self.connect_retry, peer.connect_retry);
        if let Some(families) = &self.families {
            peer.families = families
                .iter()
                .map(|word| match word {
                    FamilyWord::Ipv4 => Family::Ipv4Unicast,
                    FamilyWord::Ipv6 => Family::Ipv6Unicast,
                })
                .collect::<BTreeSet<_>>();
        }
        peer.next_hop = match self.next_hop {
            None | Some(NextHopWord::Auto) => NextHopMode::Auto,
            Some(NextHopWord::SelfAddress) => NextHopMode::SelfAddress,
            Some(NextHopWord::Keep) => NextHopMode::Keep,
        };
        peer.next_hop_v4 = self.next_hop_v4;
        peer.next_hop_v6 = self.next_hop_v6;
        peer.rr_client = self.route_reflector_client;
        peer.ttl = match (self.ttl, self.ttl_security) {
            (None, None) => Ttl::Multihop,
            (Some(ttl), None) => Ttl::Hops(ttl),
            (None, Some(hops)) => Ttl::Security { hops },
            (Some(_), Some(_)) => bail!("ttl and ttl-security exclude each other"),
        };
        if let Some(file) = &self.password_file {
            peer.password = Some(Secret::new((reading.password)(file)?));
        }
        peer.graceful_restart = self.graceful_restart.unwrap_or(true);
        peer.restart_time = self.restart_time.map(Duration::from_secs);
        peer.extended_messages = self.extended_messages;
        Ok(())
    }

    fn limits(&self, peer: &mut PeerConfig) -> anyhow::Result<()> {
        peer.allow_as_in = self.allow_own_as;
        peer.max_prefix = self.max_prefix;
        peer.max_prefix_warning = self.max_prefix_warning_only;
        if self.max_prefix_warning_only {
            if self.max_prefix.is_none() {
                bail!("max-prefix-warning-only without max-prefix: there is nothing to warn of");
            }
            if self.max_prefix_restart.is_some() {
                bail!(
                    "max-prefix-restart and max-prefix-warning-only exclude each other: a session that is not ended does not begin again"
                );
            }
        }
        peer.max_prefix_restart = match self.max_prefix_restart {
            Some(0) => None,
            Some(time) => Some(Duration::from_secs(time)),
            None => peer.max_prefix_restart,
        };
        Ok(())
    }

    fn add_path(&self, peer: &mut PeerConfig) -> anyhow::Result<()> {
        let add_path = self.add_path.map_or(AddPathWord::None, AddPathWord::from);
        peer.add_path_receive = matches!(add_path, AddPathWord::Receive | AddPathWord::Both);
        if matches!(add_path, AddPathWord::Send | AddPathWord::Both) {
            peer.add_path_send = self.add_path_count.unwrap_or(ADD_PATH_COUNT);
            if peer.add_path_send < 2 {
                bail!("add-path-count: less than two paths a prefix is no ADD-PATH");
            }
        } else if self.add_path_count.is_some() {
            bail!("add-path-count says how many paths are sent, and add-path does not say that any are");
        }
        Ok(())
    }

    fn bfd(&self) -> anyhow::Result<Option<Bfd>> {
        Ok(match &self.bfd {
            None | Some(BfdWord::Switch(false)) => None,
            Some(BfdWord::Switch(true)) => Some(Bfd::default()),
            Some(BfdWord::Table(table)) => {
                let ms = |given: Option<u64>, default| given.map_or(default, Duration::from_millis);
                let usual = Bfd::default();
                if table.hold_time == Some(0) || table.hold_time.is_some() && !table.strict {
                    bail!(
                        "bfd: hold-time is how long a strict session waits for BFD where it has no hold time of its own; not 0"
                    );
                }
                Some(Bfd {
                    min_rx: ms(table.min_rx, usual.min_rx),
                    min_tx: ms(table.min_tx, usual.min_tx),
                    multiplier: table.multiplier.unwrap_or(usual.multiplier),
                    multihop: table.multihop,
                    strict: table.strict,
                    hold_time: table.hold_time.map_or(usual.hold_time, Duration::from_secs),
                })
            }
        })
    }

    fn role(&self, peer: &mut PeerConfig) -> anyhow::Result<()> {
        peer.role = self.role.map(|role| match role {
            RoleWord::Provider => Role::Provider,
            RoleWord::RouteServer => Role::RouteServer,
            RoleWord::RouteServerClient => Role::RouteServerClient,
            RoleWord::Customer => Role::Customer,
            RoleWord::Peer => Role::Peer,
        });
        if self.strict_role && peer.role.is_none() {
            bail!("strict-role without a role");
        }
        peer.strict_role = self.strict_role;
        Ok(())
    }

    /// What passes. Between ASes nothing does unless somebody says so, and that is warned of.
    fn policy(
        &self,
        peer: &mut PeerConfig,
        who: &str,
        our_asn: u32,
        reading: &mut Reading<'_>,
    ) -> anyhow::Result<()> {
        let named = |name: &Option<String>, field: &str| match name {
            None => Ok(Filter::unwritten()),
            Some(name) => reading
                .filters
                .get(name)
                .cloned()
                .with_context(|| format!("{field}: there is no filter {name:?}")),
        };
        peer.import = named(&self.import, "import")?;
        peer.export = named(&self.export, "export")?;
        let ours = peer.local_asn.unwrap_or(our_asn);
        let external = match peer.asn {
            PeerAs::Fixed(number) => number != ours,
            PeerAs::External => true,
            PeerAs::Internal | PeerAs::Any => false,
        };
        for (field, given) in [("import", &self.import), ("export", &self.export)] {
            if external && given.is_none() {
                reading.warnings.push(format!(
                "neighbor {who}: without {field} nothing passes to or from another AS (RFC 8212); say {field} = \"accept\" or a filter"
            ));
            }
        }
        Ok(())
    }
}
