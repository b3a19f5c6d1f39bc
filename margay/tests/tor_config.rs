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
