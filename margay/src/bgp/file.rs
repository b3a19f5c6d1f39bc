//! `speaker.toml`: a speaker in one file.
//!
//! Unknown keys are refused, and a file is read wholly before anything of it is used, so that a mistake in it leaves a
//! running speaker as it is. `examples/speaker.toml` shows every key.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use bgpd::NextHop;
use bgpd::bmp::{Parts, Station};
use bgpd::config::{
    Bfd, Family, NextHopMode, PeerAs, PeerConfig, PeerRange, Role, Secret, SpeakerConfig, Ttl,
};
use bgpd::filter::{
    Action, Community, Filter, InterfacePattern, Operation, PeerType, PrefixMatch, PrefixOperator,
    RouteSource, Rule,
};
use bgpd::mrt::Recording;
use bgpd::view::OriginAttributes;
use ipnetwork::IpNetwork;
use serde::Deserialize;

/// What a file says.
#[derive(Clone, Debug, PartialEq)]
pub struct Speaker {
    /// The speaker itself.
    pub config: SpeakerConfig,
    /// What it originates.
    pub originate: BTreeMap<IpNetwork, OriginAttributes>,
    /// Learned routes go into the kernel's main table.
    pub install: bool,
    /// Where to serve metrics and health over TCP.
    pub metrics_listen: Option<SocketAddr>,
    /// What is allowed and probably not meant.
    pub warnings: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    router_id: Ipv4Addr,
    asn: u32,
    cluster_id: Option<Ipv4Addr>,
    listen: Option<Vec<SocketAddr>>,
    multipath: Option<usize>,
    #[serde(default)]
    drain: bool,
    #[serde(default)]
    graceful_restart: RestartTable,
    #[serde(default)]
    kernel: Kernel,
    #[serde(default)]
    metrics: Metrics,
    #[serde(default)]
    bmp: Vec<Bmp>,
    mrt: Option<Mrt>,
    #[serde(default)]
    originate: Vec<Originate>,
    #[serde(default)]
    neighbor: Vec<Neighbor>,
    #[serde(default)]
    filter: BTreeMap<String, FilterTable>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kernel {
    #[serde(default)]
    install: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Bmp {
    station: SocketAddr,
    monitor: Option<Vec<MonitorWord>>,
    queue: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum MonitorWord {
    PrePolicy,
    PostPolicy,
    AdjRibOut,
    LocRib,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mrt {
    directory: PathBuf,
    name: Option<String>,
    interval: Option<u64>,
    size: Option<u64>,
    keep: Option<usize>,
    sent: Option<bool>,
    queue: Option<usize>,
}

impl From<Mrt> for Recording {
    fn from(table: Mrt) -> Self {
        let usual = Self::new(table.directory);
        Self {
            name: table.name.unwrap_or(usual.name),
            interval: table.interval.map_or(usual.interval, Duration::from_secs),
            size: table.size.unwrap_or(usual.size),
            keep: table.keep.unwrap_or(usual.keep),
            sent: table.sent.unwrap_or(usual.sent),
            queue: table.queue.unwrap_or(usual.queue),
            directory: usual.directory,
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Metrics {
    listen: Option<SocketAddr>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RestartTable {
    enabled: Option<bool>,
    restart_time: Option<u64>,
    stale_time: Option<u64>,
    long_lived: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Originate {
    prefix: IpNetwork,
    next_hop: Option<IpAddr>,
    med: Option<u32>,
    local_pref: Option<u32>,
    #[serde(default)]
    communities: Vec<String>,
}

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
struct Neighbor {
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

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FilterTable {
    default: Action2,
    #[serde(default)]
    rule: Vec<RuleTable>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Action2 {
    Accept,
    Reject,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum MatchWord {
    Equal,
    NotEqual,
    In,
    NotIn,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum SourceWord {
    Peer,
    Local,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RuleTable {
    action: Action2,
    prefix: Option<IpNetwork>,
    #[serde(rename = "match")]
    relation: Option<MatchWord>,
    min_length: Option<u8>,
    max_length: Option<u8>,
    source: Option<SourceWord>,
    interface: Option<String>,
    peer_type: Option<PeerType>,
    #[serde(default)]
    communities: Vec<String>,
    #[serde(default)]
    as_path: Vec<u32>,
    local_pref: Option<u32>,
    #[serde(default)]
    add_communities: Vec<String>,
    #[serde(default)]
    remove_communities: Vec<String>,
    #[serde(default)]
    prepend: Vec<u32>,
    set_local_pref: Option<u32>,
    set_med: Option<u32>,
    #[serde(default)]
    next_hop_self: bool,
}

/// Paths a prefix when a neighbour is to be given several and nobody says how many.
const ADD_PATH_COUNT: u8 = 8;

/// Reads and checks a file; passwords are read from the files that it names, which may be relative to it.
///
/// # Errors
/// Everything that is wrong with it: the position for what is no TOML or no key, the neighbour's name for the rest.
pub fn load(path: &Path) -> anyhow::Result<Speaker> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let directory = path.parent().unwrap_or(Path::new("."));
    let password = |name: &str| {
        let file = directory.join(name);
        let text =
            std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        Ok(text.trim_end_matches(['\n', '\r']).to_owned())
    };
    parse(&text, &password).with_context(|| format!("{} cannot be used", path.display()))
}

/// Reads a file's text. `password` finds the content of a password file.
///
/// # Errors
/// See [`load`].
pub fn parse(text: &str, password: &dyn Fn(&str) -> anyhow::Result<String>) -> anyhow::Result<Speaker> {
    let file: File = toml::from_str(text)?;
    let mut filters = BTreeMap::from([
        ("accept".to_owned(), Filter::accept()),
        ("reject".to_owned(), Filter::reject()),
    ]);
    for (name, table) in &file.filter {
        if filters.contains_key(name) {
            bail!("filter {name}: that name has a meaning of its own");
        }
        let filter = filter(table).with_context(|| format!("filter {name}"))?;
        filters.insert(name.clone(), filter);
    }

    let mut config = SpeakerConfig::new(file.router_id, file.asn);
    config.cluster_id = file.cluster_id;
    config.drain = file.drain;
    config.multipath = file.multipath.unwrap_or(config.multipath).max(1);
    config.listen = file.listen.unwrap_or_else(|| {
        vec![
            (Ipv4Addr::UNSPECIFIED, 179).into(),
            (Ipv6Addr::UNSPECIFIED, 179).into(),
        ]
    });
    let restart = &mut config.graceful_restart;
    restart.enabled = file.graceful_restart.enabled.unwrap_or(true);
    let seconds = |given: Option<u64>, default| given.map_or(default, Duration::from_secs);
    restart.restart_time = seconds(file.graceful_restart.restart_time, restart.restart_time);
    restart.stale_time = seconds(file.graceful_restart.stale_time, restart.stale_time);
    restart.long_lived = seconds(file.graceful_restart.long_lived, restart.long_lived);
    if restart.restart_time > Duration::from_secs(4095) {
        bail!("graceful-restart.restart-time: at most 4095 s (RFC 4724 §3)");
    }

    for bmp in &file.bmp {
        let mut station = Station::new(bmp.station);
        if let Some(words) = &bmp.monitor {
            station.parts = Parts {
                pre_policy: words.contains(&MonitorWord::PrePolicy),
                post_policy: words.contains(&MonitorWord::PostPolicy),
                adj_rib_out: words.contains(&MonitorWord::AdjRibOut),
                loc_rib: words.contains(&MonitorWord::LocRib),
            };
        }
        station.queue = bmp.queue.unwrap_or(station.queue);
        if config
            .stations
            .iter()
            .any(|other| other.address == station.address)
        {
            bail!("bmp: station {} is there twice", station.address);
        }
        config.stations.push(station);
    }

    config.recording = file.mrt.map(Recording::from);

    let mut warnings = Vec::new();
    for neighbor in &file.neighbor {
        let who = match (
            &neighbor.name,
            &neighbor.address,
            &neighbor.range,
            &neighbor.interface,
        ) {
            (Some(name), ..) => name.clone(),
            (None, Some(address), ..) => address.to_string(),
            (None, None, Some(range), _) => range.to_string(),
            (None, None, None, Some(interface)) => interface.clone(),
            (None, None, None, None) => bail!("a neighbor has neither address nor range nor interface"),
        };
        let made = neighbor_config(neighbor, &who, file.asn, &filters, password, &mut warnings)
            .with_context(|| format!("neighbor {who}"))?;
        let placed = neighbor.address.is_some() || neighbor.interface.is_some();
        match (placed, neighbor.range) {
            (true, None) if neighbor.limit.is_some() => {
                bail!("neighbor {who}: limit belongs to a range")
            }
            (true, None) => config.peers.push(made),
            (false, Some(range)) => config.ranges.push(PeerRange {
                network: without_host_bits(range).with_context(|| format!("neighbor {who}"))?,
                limit: neighbor.limit.unwrap_or(PeerRange::LIMIT),
                template: made,
            }),
            _ => bail!("neighbor {who}: give either address, interface, or range"),
        }
    }
    let problems = config.problems();
    if !problems.is_empty() {
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        bail!("{}", lines.join("; "));
    }

    let mut originate = BTreeMap::new();
    for own in &file.originate {
        let prefix = without_host_bits(own.prefix).context("originate")?;
        let attributes = OriginAttributes {
            next_hop: own.next_hop,
            local_pref: own.local_pref,
            med: own.med,
            ..OriginAttributes::with_communities(communities(&own.communities).context("originate")?)
        };
        if originate.insert(prefix, attributes).is_some() {
            bail!("originate: {prefix} is there twice");
        }
    }
    Ok(Speaker {
        config,
        originate,
        install: file.kernel.install,
        metrics_listen: file.metrics.listen,
        warnings,
    })
}

fn without_host_bits(network: IpNetwork) -> anyhow::Result<IpNetwork> {
    if network.ip() != network.network() {
        bail!(
            "{network} has bits set behind its length; {}/{} is meant?",
            network.network(),
            network.prefix()
        );
    }
    Ok(network)
}

fn neighbor_config(
    neighbor: &Neighbor,
    who: &str,
    our_asn: u32,
    filters: &BTreeMap<String, Filter>,
    password: &dyn Fn(&str) -> anyhow::Result<String>,
    warnings: &mut Vec<String>,
) -> anyhow::Result<PeerConfig> {
    let asn = match neighbor.asn {
        AsWord::Number(number) => PeerAs::Fixed(number),
        AsWord::Word(AsKind::External) => PeerAs::External,
        AsWord::Word(AsKind::Internal) => PeerAs::Internal,
        AsWord::Word(AsKind::Any) => PeerAs::Any,
    };
    // A template has the network's address, which is never connected to.
    let given = neighbor.address.as_ref();
    let of_address = given.and_then(|given| given.interface.as_deref());
    let interface = neighbor.interface.as_deref();
    if interface.is_some() && of_address.is_some_and(|named| Some(named) != interface) {
        bail!("address and interface name different links");
    }
    let mut peer = match (given, neighbor.range, interface.or(of_address)) {
        (Some(given), _, interface) => PeerConfig {
            interface: interface.map(str::to_owned),
            ..PeerConfig::new(who, given.address, asn)
        },
        (None, Some(range), _) => PeerConfig::new(who, range.ip(), asn),
        (None, None, Some(interface)) => PeerConfig::unnumbered(who, interface, asn),
        (None, None, None) => bail!("neither address nor range nor interface"),
    };
    peer.description = neighbor.description.clone().unwrap_or_default();
    peer.device.clone_from(&neighbor.device);
    peer.port = neighbor.port.unwrap_or(peer.port);
    peer.local_asn = neighbor.local_asn;
    peer.local_address = neighbor.local_address;
    peer.passive = neighbor.passive;
    peer.shutdown = neighbor.shutdown;
    let seconds = |given: Option<u64>, default| given.map_or(default, Duration::from_secs);
    peer.hold_time = seconds(neighbor.hold_time, peer.hold_time);
    peer.keepalive = neighbor.keepalive.map(Duration::from_secs);
    peer.connect_retry = seconds(neighbor.connect_retry, peer.connect_retry);
    if let Some(families) = &neighbor.families {
        peer.families = families
            .iter()
            .map(|word| match word {
                FamilyWord::Ipv4 => Family::Ipv4Unicast,
                FamilyWord::Ipv6 => Family::Ipv6Unicast,
            })
            .collect::<BTreeSet<_>>();
    }
    peer.next_hop = match neighbor.next_hop {
        None | Some(NextHopWord::Auto) => NextHopMode::Auto,
        Some(NextHopWord::SelfAddress) => NextHopMode::SelfAddress,
        Some(NextHopWord::Keep) => NextHopMode::Keep,
    };
    peer.next_hop_v4 = neighbor.next_hop_v4;
    peer.next_hop_v6 = neighbor.next_hop_v6;
    peer.rr_client = neighbor.route_reflector_client;
    peer.ttl = match (neighbor.ttl, neighbor.ttl_security) {
        (None, None) => Ttl::Multihop,
        (Some(ttl), None) => Ttl::Hops(ttl),
        (None, Some(hops)) => Ttl::Security { hops },
        (Some(_), Some(_)) => bail!("ttl and ttl-security exclude each other"),
    };
    if let Some(file) = &neighbor.password_file {
        peer.password = Some(Secret::new(password(file)?));
    }
    peer.allow_as_in = neighbor.allow_own_as;
    peer.max_prefix = neighbor.max_prefix;
    peer.max_prefix_warning = neighbor.max_prefix_warning_only;
    if neighbor.max_prefix_warning_only {
        if neighbor.max_prefix.is_none() {
            bail!("max-prefix-warning-only without max-prefix: there is nothing to warn of");
        }
        if neighbor.max_prefix_restart.is_some() {
            bail!(
                "max-prefix-restart and max-prefix-warning-only exclude each other: a session that is not ended does not begin again"
            );
        }
    }
    peer.max_prefix_restart = match neighbor.max_prefix_restart {
        Some(0) => None,
        Some(time) => Some(Duration::from_secs(time)),
        None => peer.max_prefix_restart,
    };
    let add_path = neighbor.add_path.map_or(AddPathWord::None, AddPathWord::from);
    peer.add_path_receive = matches!(add_path, AddPathWord::Receive | AddPathWord::Both);
    if matches!(add_path, AddPathWord::Send | AddPathWord::Both) {
        peer.add_path_send = neighbor.add_path_count.unwrap_or(ADD_PATH_COUNT);
        if peer.add_path_send < 2 {
            bail!("add-path-count: less than two paths a prefix is no ADD-PATH");
        }
    } else if neighbor.add_path_count.is_some() {
        bail!("add-path-count says how many paths are sent, and add-path does not say that any are");
    }
    peer.graceful_restart = neighbor.graceful_restart.unwrap_or(true);
    peer.restart_time = neighbor.restart_time.map(Duration::from_secs);
    peer.extended_messages = neighbor.extended_messages;
    peer.bfd = match &neighbor.bfd {
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
    };
    peer.role = neighbor.role.map(|role| match role {
        RoleWord::Provider => Role::Provider,
        RoleWord::RouteServer => Role::RouteServer,
        RoleWord::RouteServerClient => Role::RouteServerClient,
        RoleWord::Customer => Role::Customer,
        RoleWord::Peer => Role::Peer,
    });
    if neighbor.strict_role && peer.role.is_none() {
        bail!("strict-role without a role");
    }
    peer.strict_role = neighbor.strict_role;
    let named = |name: &Option<String>, field: &str| match name {
        None => Ok(Filter::unwritten()),
        Some(name) => filters
            .get(name)
            .cloned()
            .with_context(|| format!("{field}: there is no filter {name:?}")),
    };
    peer.import = named(&neighbor.import, "import")?;
    peer.export = named(&neighbor.export, "export")?;
    let ours = peer.local_asn.unwrap_or(our_asn);
    let external = match asn {
        PeerAs::Fixed(number) => number != ours,
        PeerAs::External => true,
        PeerAs::Internal | PeerAs::Any => false,
    };
    for (field, given) in [("import", &neighbor.import), ("export", &neighbor.export)] {
        if external && given.is_none() {
            warnings.push(format!(
                "neighbor {who}: without {field} nothing passes to or from another AS (RFC 8212); say {field} = \"accept\" or a filter"
            ));
        }
    }
    Ok(peer)
}

fn communities(words: &[String]) -> anyhow::Result<Vec<Community>> {
    words.iter().map(|word| Ok(word.parse()?)).collect()
}

fn filter(table: &FilterTable) -> anyhow::Result<Filter> {
    let rules = table
        .rule
        .iter()
        .enumerate()
        .map(|(index, rule)| self::rule(rule).with_context(|| format!("rule {}", index + 1)));
    Ok(Filter {
        rules: rules.collect::<anyhow::Result<_>>()?,
        default: action(table.default),
    })
}

fn action(word: Action2) -> Action {
    match word {
        Action2::Accept => Action::Accept,
        Action2::Reject => Action::Reject,
    }
}

fn rule(table: &RuleTable) -> anyhow::Result<Rule> {
    let mut rule = Rule::new(action(table.action));
    if table.prefix.is_none() && table.relation.is_some() {
        bail!("match says how a prefix is compared, and there is none");
    }
    if table.prefix.is_some() || table.min_length.is_some() || table.max_length.is_some() {
        rule.prefix = Some(PrefixMatch {
            network: table.prefix.map(without_host_bits).transpose()?,
            operator: match table.relation {
                None | Some(MatchWord::Equal)
                    if table.relation.is_some() || table.min_length.or(table.max_length).is_none() =>
                {
                    PrefixOperator::Equal
                }
                // With a range of lengths the prefix is what they are inside of, as in everybody's prefix lists.
                None | Some(MatchWord::In | MatchWord::Equal) => PrefixOperator::In,
                Some(MatchWord::NotEqual) => PrefixOperator::NotEqual,
                Some(MatchWord::NotIn) => PrefixOperator::NotIn,
            },
            min_length: table.min_length,
            max_length: table.max_length,
        });
    }
    rule.source = table.source.map(|source| match source {
        SourceWord::Peer => RouteSource::Peer,
        SourceWord::Local => RouteSource::Local,
    });
    rule.interface = table.interface.clone().map(InterfacePattern::new);
    rule.peer_type = table.peer_type;
    rule.communities = communities(&table.communities)?.into_iter().collect();
    rule.as_path_prefix.clone_from(&table.as_path);
    rule.local_pref = table.local_pref;
    let operations = &mut rule.operations;
    operations.extend(
        communities(&table.remove_communities)?
            .into_iter()
            .map(Operation::RemoveCommunity),
    );
    operations.extend(
        communities(&table.add_communities)?
            .into_iter()
            .map(Operation::AddCommunity),
    );
    if !table.prepend.is_empty() {
        operations.push(Operation::PrependAsPath(table.prepend.clone()));
    }
    operations.extend(table.set_local_pref.map(Operation::SetLocalPref));
    operations.extend(table.set_med.map(Operation::SetMed));
    operations.extend(table.next_hop_self.then_some(Operation::NextHopSelf));
    if rule.action == Action::Reject && !operations.is_empty() {
        bail!("a rule that rejects changes nothing");
    }
    Ok(rule)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> anyhow::Result<Speaker> {
        parse(text, &|name| match name {
            "key" | "secrets/tor" => Ok("s3cret".into()),
            other => bail!("no file {other}"),
        })
    }

    fn refused(text: &str) -> String {
        format!("{:#}", read(text).unwrap_err())
    }

    const HEAD: &str = "router-id = \"10.0.0.1\"\nasn = 65000\n";

    #[test]
    fn the_sample_is_understood_and_means_what_its_comments_say() {
        let speaker = read(include_str!("../../../examples/speaker.toml")).unwrap();
        assert_eq!(speaker.warnings, Vec::<String>::new());
        let config = &speaker.config;
        assert_eq!(
            (config.router_id.to_string(), config.asn),
            ("10.0.0.1".into(), 65000)
        );
        assert_eq!(config.cluster_id, Some([10, 0, 0, 1].into()));
        assert_eq!(
            config.listen,
            ["10.0.0.1:179".parse().unwrap(), "[fd00::1]:179".parse().unwrap()]
        );
        assert!(!speaker.install);
        let recording = Recording::new("/var/log/margay/mrt");
        assert_eq!(config.recording.as_ref(), Some(&recording));
        assert_eq!(
            speaker
                .originate
                .keys()
                .map(ToString::to_string)
                .collect::<Vec<_>>(),
            ["198.51.100.0/24"]
        );
        let tor = config.peers.iter().find(|peer| peer.name == "tor-a").unwrap();
        assert_eq!(tor.asn, PeerAs::Fixed(65001));
        assert_eq!(tor.password.as_ref().map(Secret::expose), Some("s3cret"));
        assert_eq!(tor.ttl, Ttl::Security { hops: 1 });
        assert_eq!((tor.import.rules.len(), tor.import.default), (2, Action::Reject));
        assert_eq!(tor.export.default, Action::Reject);
        assert_eq!(
            (tor.max_prefix, tor.max_prefix_restart),
            (Some(10_000), Some(Duration::from_secs(600)))
        );
        let watched = Bfd {
            min_rx: Duration::from_millis(100),
            min_tx: Duration::from_millis(100),
            strict: true,
            ..Bfd::default()
        };
        assert_eq!(tor.bfd, Some(watched));
        let link = config.peers.iter().find(|peer| peer.name == "eth2").unwrap();
        assert!(link.is_unlocated() && link.bfd.is_none());
        assert_eq!(link.asn, PeerAs::External);
        let nodes = &config.ranges[0];
        assert_eq!(nodes.network, "10.0.0.0/24".parse::<IpNetwork>().unwrap());
        assert_eq!(nodes.template.asn, PeerAs::Internal);
        assert!(
            nodes.template.rr_client && nodes.template.add_path_receive && nodes.template.add_path_send == 4
        );
    }

    #[test]
    fn a_mistake_is_named_with_its_place() {
        let unknown = refused(&format!(
            "{HEAD}[[neighbor]]\naddress = \"10.0.0.2\"\nasn = 65001\nholdtime = 9\n"
        ));
        assert!(
            unknown.contains("line 6") && unknown.contains("holdtime"),
            "{unknown}"
        );
        let cases = [
            (
                "[[neighbor]]\nasn = 1\n",
                "neither address nor range nor interface",
            ),
            (
                "[[neighbor]]\naddress = \"10.0.0.2\"\nrange = \"10.0.0.0/24\"\nasn = 1\n",
                "give either",
            ),
            (
                "[[neighbor]]\nname = \"x\"\naddress = \"10.0.0.2\"\nasn = 1\nimport = \"none\"\n",
                "neighbor x: import: there is no filter \"none\"",
            ),
            (
                "[[neighbor]]\naddress = \"10.0.0.2\"\nasn = 1\npassword-file = \"gone\"\n",
                "no file gone",
            ),
            (
                "[[neighbor]]\naddress = \"10.0.0.2\"\nasn = 1\nhold-time = 2\n",
                "hold time",
            ),
            ("[[neighbor]]\nrange = \"10.0.0.1/24\"\nasn = 1\n", "10.0.0.0/24"),
            (
                "[[neighbor]]\naddress = \"fe80::1\"\nasn = 1\n",
                "peer fe80::1: an address of a link, or none at all, needs the interface",
            ),
            (
                "[[neighbor]]\naddress = \"fe80::1%eth0\"\ninterface = \"eth1\"\nasn = 1\n",
                "different links",
            ),
            (
                "[[neighbor]]\naddress = \"10.0.0.2\"\nasn = 1\nbfd = { min-rx = 5 }\n",
                "BFD intervals are 10 ms to 60 s",
            ),
            (
                "[[neighbor]]\naddress = \"10.0.0.2\"\nasn = 1\nbfd = { interval = 5 }\n",
                "min-rx, min-tx (milliseconds)",
            ),
            ("[[originate]]\nprefix = \"10.0.0.1/24\"\n", "10.0.0.0/24"),
            (
                "[[neighbor]]\naddress = \"10.0.0.2\"\nasn = 1\nbfd = { hold-time = 5 }\n",
                "how long a strict session waits",
            ),
            (
                "[[neighbor]]\naddress = \"10.0.0.2\"\nasn = 1\nmax-prefix-warning-only = true\n",
                "nothing to warn of",
            ),
            (
                "[[neighbor]]\naddress = \"10.0.0.2\"\nasn = 1\nmax-prefix = 5\nmax-prefix-restart = 9\nmax-prefix-warning-only = true\n",
                "exclude each other",
            ),
            ("[mrt]\nname = \"x\"\n", "directory"),
            ("[mrt]\ndirectory = \"/x\"\nsize = 0\n", "a size above 0"),
            (
                "[[neighbor]]\naddress = \"10.0.0.2\"\nasn = \"ebgp\"\n",
                "external",
            ),
            (
                "[filter.x]\ndefault = \"accept\"\n[[filter.x.rule]]\naction = \"reject\"\nset-med = 1\n",
                "filter x: rule 1: a rule that rejects",
            ),
        ];
        for (text, part) in cases {
            let said = refused(&format!("{HEAD}{text}"));
            assert!(said.contains(part), "{said}\nhas no {part:?}");
        }
    }

    #[test]
    fn several_paths_may_be_asked_for_by_a_word_or_a_switch() {
        let both_ways = |setting: &str| {
            let speaker = read(&format!(
                "{HEAD}[[neighbor]]\naddress = \"10.0.0.2\"\nasn = \"internal\"\nadd-path = {setting}\n"
            ))
            .unwrap();
            let peer = &speaker.config.peers[0];
            (peer.add_path_receive, peer.add_path_send > 1)
        };
        assert_eq!(both_ways("true"), (true, true));
        assert_eq!(both_ways("false"), (false, false));
        assert_eq!(both_ways("\"receive\""), (true, false));
        assert_eq!(both_ways("\"send\""), (false, true));
        let wrong = refused(&format!(
            "{HEAD}[[neighbor]]\naddress = \"10.0.0.2\"\nasn = 1\nadd-path = \"all\"\n"
        ));
        assert!(
            wrong.contains("line 6") && wrong.contains("\"receive\""),
            "{wrong}"
        );
    }

    /// RFC 8212.
    #[test]
    fn without_a_policy_nothing_passes_between_ases_and_that_is_said() {
        let speaker = read(&format!(
            "{HEAD}[[neighbor]]\naddress = \"10.0.0.2\"\nasn = 65001\n[[neighbor]]\naddress = \"10.0.0.3\"\nasn = \"internal\"\n"
        ))
        .unwrap();
        assert_eq!(speaker.warnings.len(), 2, "{:?}", speaker.warnings);
        assert!(speaker.warnings[0].contains("10.0.0.2") && speaker.warnings[0].contains("RFC 8212"));
        let import = &speaker.config.peers[0].import;
        assert_eq!(import.default, Action::Reject);
        assert_eq!(import.rules[0].peer_type, Some(PeerType::Ibgp));
    }

    #[test]
    fn lengths_alone_are_inside_and_a_bare_prefix_is_itself() {
        let speaker = read(&format!(
            "{HEAD}[filter.x]\ndefault = \"reject\"\n\
             [[filter.x.rule]]\naction = \"accept\"\nprefix = \"10.0.0.0/8\"\n\
             [[filter.x.rule]]\naction = \"accept\"\nprefix = \"10.0.0.0/8\"\nmin-length = 24\n\
             [[neighbor]]\naddress = \"10.0.0.2\"\nasn = 1\nimport = \"x\"\nexport = \"x\"\n"
        ))
        .unwrap();
        let operators: Vec<_> = speaker.config.peers[0]
            .import
            .rules
            .iter()
            .map(|rule| rule.prefix.as_ref().unwrap().operator)
            .collect();
        assert_eq!(operators, [PrefixOperator::Equal, PrefixOperator::In]);
    }
}
