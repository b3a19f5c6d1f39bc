//! The columns of `get`, kind by kind: the ones that `calicoctl get` shows, in its order.
//!
//! Cells are read from the stored JSON rather than from typed objects, so that an object which a newer version
//! wrote, and which this one cannot type, still has its row.

use policy::resource::Kind;
use serde_json::Value;

use super::output::Columns;

/// What a cell may need beside the object.
#[derive(Debug, Clone, Copy)]
pub(super) struct Context {
    /// AS number of nodes that have none of their own.
    pub(super) default_as: u32,
}

type Cell = fn(&Value, Context) -> String;

/// A heading, and how its cell is read.
type Column = (&'static str, Cell);

/// Longest list of networks in one cell, in characters.
const MAX_LIST: usize = 80;

/// Table of objects of one kind. `namespaces` puts the namespace in front.
pub(super) fn table(kind: Kind, objects: &[Value], wide: bool, namespaces: bool, context: Context) -> String {
    let columns = columns(kind, wide);
    let mut head: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
    if namespaces {
        head.insert(0, "namespace");
    }
    let mut table = Columns::new(head);
    for object in objects {
        let mut row: Vec<String> = columns.iter().map(|(_, cell)| cell(object, context)).collect();
        if namespaces {
            row.insert(0, text(object, "/metadata/namespace"));
        }
        table.row(row);
    }
    table.render()
}

fn columns(kind: Kind, wide: bool) -> Vec<Column> {
    let name: Column = ("name", |o, _| text(o, "/metadata/name"));
    let narrow_or = |narrow: Vec<Column>, full: Vec<Column>| if wide { full } else { narrow };
    match kind {
        Kind::IpPool => narrow_or(
            vec![
                name,
                ("cidr", |o, _| text(o, "/spec/cidr")),
                ("selector", pool_selector),
            ],
            vec![
                name,
                ("cidr", |o, _| text(o, "/spec/cidr")),
                ("nat", |o, _| flag(o, "/spec/natOutgoing")),
                ("ipipmode", |o, _| or(text(o, "/spec/ipipMode"), "Never")),
                ("vxlanmode", |o, _| or(text(o, "/spec/vxlanMode"), "Never")),
                ("disabled", |o, _| flag(o, "/spec/disabled")),
                ("disablebgpexport", |o, _| flag(o, "/spec/disableBGPExport")),
                ("selector", pool_selector),
                ("assignmentmode", |o, _| {
                    or(text(o, "/spec/assignmentMode"), "Automatic")
                }),
            ],
        ),
        Kind::BgpPeer => vec![
            name,
            ("peerip", |o, _| {
                or(text(o, "/spec/peerIP"), &text(o, "/spec/peerSelector"))
            }),
            ("node", |o, _| {
                or(
                    or(text(o, "/spec/node"), &text(o, "/spec/nodeSelector")),
                    "(global)",
                )
            }),
            ("asn", |o, _| text(o, "/spec/asNumber")),
        ],
        Kind::BgpConfiguration => vec![
            name,
            ("logseverity", |o, _| {
                or(text(o, "/spec/logSeverityScreen"), "Info")
            }),
            ("meshenabled", |o, _| {
                or(text(o, "/spec/nodeToNodeMeshEnabled"), "true")
            }),
            ("asnumber", |o, _| text(o, "/spec/asNumber")),
        ],
        Kind::BgpFilter => vec![
            name,
            ("numexportv4", |o, _| count(o, "/spec/exportV4")),
            ("numimportv4", |o, _| count(o, "/spec/importV4")),
            ("numexportv6", |o, _| count(o, "/spec/exportV6")),
            ("numimportv6", |o, _| count(o, "/spec/importV6")),
        ],
        Kind::NetworkPolicy
        | Kind::GlobalNetworkPolicy
        | Kind::StagedNetworkPolicy
        | Kind::StagedGlobalNetworkPolicy => narrow_or(
            vec![name, ("tier", |o, _| or(text(o, "/spec/tier"), "default"))],
            vec![
                name,
                ("tier", |o, _| or(text(o, "/spec/tier"), "default")),
                ("order", |o, _| text(o, "/spec/order")),
                ("selector", |o, _| or(text(o, "/spec/selector"), "all()")),
            ],
        ),
        Kind::NetworkSet | Kind::GlobalNetworkSet => narrow_or(
            vec![name],
            vec![name, ("nets", |o, _| cut(list(o, "/spec/nets")))],
        ),
        Kind::HostEndpoint => narrow_or(
            vec![name, ("node", |o, _| text(o, "/spec/node"))],
            vec![
                name,
                ("node", |o, _| text(o, "/spec/node")),
                ("interface", |o, _| text(o, "/spec/interfaceName")),
                ("ips", |o, _| list(o, "/spec/expectedIPs")),
                ("profiles", |o, _| list(o, "/spec/profiles")),
            ],
        ),
        Kind::WorkloadEndpoint => narrow_or(
            vec![
                ("workload", workload),
                ("node", |o, _| text(o, "/spec/node")),
                ("networks", |o, _| list(o, "/spec/ipNetworks")),
                ("interface", |o, _| text(o, "/spec/interfaceName")),
            ],
            vec![
                name,
                ("workload", workload),
                ("node", |o, _| text(o, "/spec/node")),
                ("networks", |o, _| list(o, "/spec/ipNetworks")),
                ("interface", |o, _| text(o, "/spec/interfaceName")),
                ("profiles", |o, _| list(o, "/spec/profiles")),
                ("nats", |o, _| list(o, "/spec/ipNATs")),
            ],
        ),
        Kind::Node => narrow_or(
            vec![name],
            vec![
                name,
                ("asn", |o, c| {
                    or(text(o, "/spec/bgp/asNumber"), &format!("({})", c.default_as))
                }),
                ("ipv4", |o, _| text(o, "/spec/bgp/ipv4Address")),
                ("ipv6", |o, _| text(o, "/spec/bgp/ipv6Address")),
            ],
        ),
        Kind::Profile => narrow_or(
            vec![name],
            vec![name, ("labels", |o, _| map(o, "/spec/labelsToApply"))],
        ),
        Kind::Tier => vec![name, ("order", |o, _| text(o, "/spec/order"))],
        Kind::IpReservation => narrow_or(
            vec![name],
            vec![name, ("cidrs", |o, _| cut(list(o, "/spec/reservedCIDRs")))],
        ),
        Kind::IpamConfiguration => {
            let mut all: Vec<Column> = vec![
                name,
                ("strictaffinity", |o, _| flag(o, "/spec/strictAffinity")),
                ("autoallocateblocks", |o, _| {
                    or(text(o, "/spec/autoAllocateBlocks"), "true")
                }),
            ];
            if wide {
                all.push(("maxblocksperhost", |o, _| text(o, "/spec/maxBlocksPerHost")));
            }
            all
        }
        Kind::ClusterInformation => vec![
            name,
            ("clusterguid", |o, _| text(o, "/spec/clusterGUID")),
            ("clustertype", |o, _| text(o, "/spec/clusterType")),
            ("calicoversion", |o, _| text(o, "/spec/calicoVersion")),
            ("datastoreready", |o, _| flag(o, "/spec/datastoreReady")),
        ],
        Kind::CalicoNodeStatus => narrow_or(
            vec![name, ("node", |o, _| text(o, "/spec/node"))],
            vec![
                name,
                ("node", |o, _| text(o, "/spec/node")),
                ("classes", |o, _| list(o, "/spec/classes")),
            ],
        ),
        _ => vec![name],
    }
}

fn text(object: &Value, pointer: &str) -> String {
    match object.pointer(pointer) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

fn flag(object: &Value, pointer: &str) -> String {
    or(text(object, pointer), "false")
}

fn or(text: String, other: &str) -> String {
    if text.is_empty() { other.to_owned() } else { text }
}

fn count(object: &Value, pointer: &str) -> String {
    object
        .pointer(pointer)
        .and_then(Value::as_array)
        .map_or(0, Vec::len)
        .to_string()
}

fn list(object: &Value, pointer: &str) -> String {
    let Some(items) = object.pointer(pointer).and_then(Value::as_array) else {
        return String::new();
    };
    let words: Vec<String> = items
        .iter()
        .map(|item| item.as_str().map_or_else(|| item.to_string(), str::to_owned))
        .collect();
    words.join(",")
}

fn map(object: &Value, pointer: &str) -> String {
    let Some(items) = object.pointer(pointer).and_then(Value::as_object) else {
        return String::new();
    };
    let words: Vec<String> = items
        .iter()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    words.join(",")
}

fn cut(text: String) -> String {
    if text.chars().count() <= MAX_LIST {
        return text;
    }
    let mut short: String = text.chars().take(MAX_LIST - 3).collect();
    short.push_str("...");
    short
}

fn pool_selector(object: &Value, _: Context) -> String {
    or(text(object, "/spec/nodeSelector"), "all()")
}

fn workload(object: &Value, _: Context) -> String {
    or(text(object, "/spec/pod"), &text(object, "/spec/workload"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_inherited_as_number_stands_in_brackets() {
        let node = json!({"metadata": {"name": "a"}, "spec": {"bgp": {"ipv4Address": "10.0.0.1/24"}}});
        let text = table(Kind::Node, &[node], true, false, Context { default_as: 64512 });
        assert_eq!(
            text,
            "NAME  ASN      IPV4         IPV6\na     (64512)  10.0.0.1/24\n"
        );
    }

    #[test]
    fn long_lists_are_cut_and_namespaces_come_first() {
        let nets: Vec<String> = (0..40).map(|i| format!("10.0.{i}.0/24")).collect();
        let set = json!({"metadata": {"name": "s", "namespace": "n"}, "spec": {"nets": nets}});
        let text = table(Kind::NetworkSet, &[set], true, true, Context { default_as: 1 });
        assert!(
            text.starts_with("NAMESPACE  NAME  NETS\nn          s     10.0.0.0/24,"),
            "{text}"
        );
        assert!(text.trim_end().ends_with("..."), "{text}");
    }
}
