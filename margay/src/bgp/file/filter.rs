//! Filters of the file: `[filter.NAME]` and its rules.

use std::collections::BTreeMap;

use anyhow::{Context as _, bail};
use bgpd::filter::{
    Action, Community, Filter, InterfacePattern, Operation, PeerType, PrefixMatch, PrefixOperator,
    RouteSource, Rule,
};
use ipnetwork::IpNetwork;
use serde::Deserialize;

use super::without_host_bits;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FilterTable {
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

/// All of them by name, with those that have a name of their own.
pub(super) fn filters(tables: &BTreeMap<String, FilterTable>) -> anyhow::Result<BTreeMap<String, Filter>> {
    let mut filters = BTreeMap::from([
        ("accept".to_owned(), Filter::accept()),
        ("reject".to_owned(), Filter::reject()),
    ]);
    for (name, table) in tables {
        if filters.contains_key(name) {
            bail!("filter {name}: that name has a meaning of its own");
        }
        let filter = filter(table).with_context(|| format!("filter {name}"))?;
        filters.insert(name.clone(), filter);
    }
    Ok(filters)
}

/// Communities as people write them.
pub(super) fn communities(words: &[String]) -> anyhow::Result<Vec<Community>> {
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
