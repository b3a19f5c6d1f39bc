//! `margay bgp tor-config`: from resources to what an operator pastes into a router.

mod common;

use common::World;

const CLUSTER: &str = "\
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: pool}
spec: {cidr: 10.65.0.0/16}
---
apiVersion: projectcalico.org/v3
kind: Node
metadata: {name: host-a, labels: {rack: r1}}
spec: {bgp: {ipv4Address: 10.0.0.1/24, asNumber: 65001}}
---
apiVersion: projectcalico.org/v3
kind: Node
metadata: {name: host-b, labels: {rack: r2}}
spec: {bgp: {ipv4Address: 10.0.1.1/24, asNumber: 65002}}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: tor-1}
spec: {peerIP: 10.0.0.254, asNumber: 65100, nodeSelector: rack == 'r1', ttlSecurity: 1}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: tor-2}
spec: {peerIP: 10.0.1.254, asNumber: 65200, nodeSelector: rack == 'r2'}
";

#[test]
fn a_router_gets_its_own_nodes_and_nobody_elses() {
    let world = World::new();
    let none = world.run(&["bgp", "tor-config", "--vendor", "frr"]);
    assert_eq!(none.status, 1);
    assert!(none.err.contains("apply a BGPPeer"), "{none:#?}");

    world.ok(&["apply", "-f", world.file("cluster.yaml", CLUSTER)]);
    let which = world.run(&["bgp", "tor-config", "--vendor", "frr"]);
    assert!(which.err.contains("10.0.0.254, 10.0.1.254"), "{which:#?}");

    let one = world.ok(&["bgp", "tor-config", "--vendor", "bird", "--router", "10.0.0.254"]);
    let lines: Vec<&str> = one.lines().collect();
    assert!(lines.contains(&"define MARGAY4 = [ 10.65.0.0/16+ ];"), "{one}");
    assert!(lines.contains(&"    local as 65100;"), "{one}");
    assert!(
        lines.contains(
            &"protocol bgp margay_host_a_v4 from margay4 { neighbor 10.0.0.1 as 65001; direct; ttl security on; }"
        ),
        "{one}"
    );
    assert!(!one.contains("host_b"), "{one}");

    let junos = world.ok(&["bgp", "tor-config", "--vendor", "junos", "--node", "host-b"]);
    assert!(
        junos.contains("set routing-options autonomous-system 65200"),
        "{junos}"
    );
    assert!(junos.contains("neighbor 10.0.1.1 peer-as 65002"), "{junos}");
    assert!(!junos.contains("10.0.0.1 "), "{junos}");
}

const LINKS: &str = "\
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: pool}
spec: {cidr: 10.65.0.0/16}
---
apiVersion: projectcalico.org/v3
kind: Node
metadata: {name: host-a}
spec: {bgp: {ipv4Address: 10.0.0.1/32, asNumber: 65001}}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: left}
spec: {interface: eth1, bfd: {}}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: right}
spec: {interface: eth2, asNumber: 65200}
---
apiVersion: projectcalico.org/v3
kind: BGPConfiguration
metadata: {name: default}
spec:
  communities: [{name: pods, value: '65001:100'}]
  prefixAdvertisements: [{cidr: 10.65.0.0/16, communities: [pods, '65001:1:2']}]
";

#[test]
fn a_router_on_a_link_without_addresses_is_chosen_by_its_peering() {
    let world = World::new();
    world.ok(&["apply", "-f", world.file("links.yaml", LINKS)]);
    let config = ["bgp", "tor-config", "--vendor", "frr"];
    let ask = |more: &[&str]| world.run(&[&config, more].concat());
    let which = ask(&[]);
    assert!(which.err.contains("several routers (left, right)"), "{which:#?}");
    let unknown = ask(&["--router", "middle"]);
    assert!(unknown.err.contains("there are: left, right"), "{unknown:#?}");
    let nobody = ask(&["--node", "host-z"]);
    assert!(nobody.err.contains("there is no Node host-z"), "{nobody:#?}");
    let what_as = ask(&["--router", "left"]);
    assert!(what_as.err.contains("--router-as"), "{what_as:#?}");
    let not_that = ask(&["--router", "right", "--router-as", "65100"]);
    assert!(not_that.err.contains("AS 65200, not 65100"), "{not_that:#?}");

    let left = ask(&["--router", "left", "--router-as", "65100"]);
    assert_eq!(left.status, 0, "{left:#?}");
    for line in [
        "router bgp 65100",
        " neighbor PORT-host-a-eth1 interface remote-as 65001",
        " neighbor PORT-host-a-eth1 bfd profile margay-300-300-3",
        "! the nodes mark what is in 10.65.0.0/16 with 65001:100 65001:1:2",
    ] {
        assert!(
            left.out.lines().any(|found| found == line),
            "{line}:\n{}",
            left.out
        );
    }
    assert!(!left.out.contains("eth2"), "{}", left.out);
    let right = ask(&["--router", "right"]);
    assert!(
        right.out.contains("router bgp 65200") && !right.out.contains("bfd"),
        "{right:#?}"
    );
}
