//! Examples at the end of `--help`: what people type first. The words of each are tried by a test, so none of them can
//! become one that does not exist.

use policy::resource::Kind;

pub(crate) const TOP: &str = "\
Try it, without touching this machine's network:
  margay demo

Start on one host:
  margay node run                              the daemon, in the foreground
  margay apply -f examples/01-single-host      pools and policy
  margay workload attach web --netns web       a network namespace gets an address
  margay explain --from client --to web --port 80

Exit status: 0 done; 1 refused, failed or answered with no; 2 the command line was not understood";

pub(super) const APPLY: &str = "\
Examples:
  margay apply -f policy.yaml
  margay apply -R -f manifests/
  margay get gnp -o yaml --export | margay apply -f -

Every document stands for itself: one that is wrong is reported as file:line:column and field, the others are applied.";

pub(super) const DELETE: &str = "\
Examples:
  margay delete networkpolicy web -n shop
  margay delete -f policy.yaml --skip-not-exists";

const GET: &str = "\
Examples:
  margay get nodes -o wide
  margay get np,gnp -A
  margay get ippool default -o yaml --export";

pub(super) const PATCH: &str = r#"Examples:
  margay patch ippool default -p '{"spec": {"disabled": true}}'
  margay patch np web --type json -p '[{"op": "remove", "path": "/spec/order"}]'"#;

pub(super) const LABEL: &str = "\
Examples:
  margay label node host1 rack=a
  margay label node host1 rack=b --overwrite
  margay label node host1 rack-";

pub(super) const VALIDATE: &str = "\
Examples:
  margay validate -f policy.yaml
  margay validate -R -f manifests/

Nothing is read from the datastore and no daemon is needed.";

pub(super) const DIFF: &str = "\
Examples:
  margay diff -f policy.yaml
  margay diff -R -f manifests/ -o json
  margay diff -f policy.yaml --exit-code > /dev/null || echo it would change something

Nothing is written. Flows are those between workloads that exist, and between them and addresses that rules name: verdicts
change only where rules draw a line, so each stretch between two lines is asked once, in both worlds.";

pub(super) const EXPLAIN: &str = "\
Examples:
  margay explain --from client --to web --port 80
  margay explain --from shop/front --to 203.0.113.7 --proto udp --port 53
  margay explain --from client --to web --proto icmp --icmp 8
  margay explain --from client --to web --port 22 --check || echo closed
  margay explain --from client --to web --port 80 --live --wait 20s

The answer comes from the policies in the datastore, which the rules in the kernel are made of; no packet is sent.
With --live the daemon of this host adds the tracked connections of the flow and follows the next such packet, rule by rule;
exit status 1 when the kernel does something else than the model says.";

pub(super) const FLOWS: &str = "\
Examples:
  margay flows --denied
  margay flows --denied --follow --endpoint shop/web
  margay flows --follow -o json                an object a line, for shipping

The daemon keeps the last 4096. The kernel tells at most a hundred packets a second for each rule.";

pub(super) const POLICY_TEST: &str = "\
Examples:
  margay policy test tests.yaml
  margay policy test tests.yaml -o json
  margay policy test --live tests.yaml

A file holds namespaces, endpoints and manifests (objects, or paths relative to the file), and the tests:
  tests:
    - {from: shop/front, to: shop/web, protocol: TCP, port: 80, expect: allow}
    - {from: 203.0.113.7, to: shop/db, protocol: TCP, port: 5432, expect: deny}

Without --live nothing is read from the datastore and no daemon is needed.";

pub(super) const POLICY_COMPILE: &str = "\
Examples:
  margay policy compile
  margay policy compile --node host1 --explain
  margay policy compile -o json

A long list is entered by one lookup of the packet's port or peer. What names neither is asked for every first packet.";

pub(super) const POLICY_COUNTERS: &str = "\
Examples:
  margay policy counters
  margay policy counters shop/web --nonzero
  watch margay policy counters 'end of tier'

Packets of established connections pass before policy is asked, so an Allow counts connections and a Deny packets.";

pub(super) const SELECTOR: &str = r#"Examples:
  margay selector 'role == "web" && has(env)' role=web env=prod
  margay selector 'role in {"web", "app"}' role=db -o json"#;

pub(super) const COMPLETIONS: &str = "\
Examples:
  margay completions bash > /usr/share/bash-completion/completions/margay
  source <(margay completions zsh)";

pub(super) const NODE_RUN: &str = "\
Examples:
  margay node run
  margay node run --name host1 --ip 192.0.2.1/24 --as 65001
  margay node run --backend none --log-format json

It needs CAP_NET_ADMIN, CAP_NET_BIND_SERVICE for the BGP port, and CAP_SYS_ADMIN to enter the namespaces of workloads.
When it stops, however it stops, the kernel keeps routes and policy; `margay node cleanup` takes them away.";

pub(super) const HUB: &str = "\
Examples:
  margay hub --config /etc/margay/hub.toml
  margay hub --datastore etcd://127.0.0.1:2379 --cert hub.pem --key hub-key.pem --ca ca.pem
  margay node run --datastore 'hub://hub1/?cacert=ca.pem&cert=node.pem&key=node-key.pem'

A node's name is the common name of its certificate.
It is shown what it needs and writes what is its own.";

pub(super) const WORKLOAD_ATTACH: &str = "\
Examples:
  ip netns add web && margay workload attach web --netns web --label role=web
  margay workload attach db --netns 4711 --ip 10.66.0.10 --port pg=TCP:5432

It returns when policy and routes are in the kernel: the workload's first packet finds them there.";

pub(super) const BGP_ROUTES: &str = "\
Examples:
  margay bgp routes
  margay bgp routes all 10.65.0.7              the routes that cover an address
  margay bgp routes advertised --peer 10.0.1.1";

pub(super) const BGP_CLEAR: &str = "\
Examples:
  margay bgp clear 10.0.0.254                  end the session; it comes back by itself
  margay bgp clear tor-a --soft in             ask for its routes again (after a change nobody told us of)
  margay bgp clear --all --soft out";

pub(super) const BGP_DRAIN: &str = "\
Examples:
  margay bgp drain                             before maintenance: others take their traffic elsewhere
  margay bgp drain --undo";

pub(super) const TOR_CONFIG: &str = "\
Examples:
  margay bgp tor-config --vendor frr
  margay bgp tor-config --vendor junos --router 10.0.0.254
  margay bgp tor-config --vendor bird --node host-a
  margay bgp tor-config --vendor eos --router left --router-as 65100

The word KEY stands where a TCP-MD5 key belongs: keys are not in the datastore. A router on a link without addresses goes by the name
of its BGPPeer; PORT-host-a-eth1 stands for its interface towards eth1 of host-a.";

pub(super) const BGP_SUMMARY: &str = "\
Examples:
  margay bgp summary
  margay bgp summary --all-nodes               the whole cluster, from the datastore";

pub(super) const BGP_DUMP: &str = "\
Examples:
  margay bgp dump --mrt table.mrt
  margay bgp dump | bgpdump -m -";

pub(super) const BGP_RUN: &str = "\
Examples:
  margay bgp run --config speaker.toml
  margay bgp run --config speaker.toml --check
  kill -HUP $(pidof margay)                    read the file again and apply the difference";

pub(super) const IPAM_SHOW: &str = "\
Examples:
  margay ipam show --show-blocks
  margay ipam show --ip 10.66.0.10";

pub(super) const IPAM_CHECK: &str = "\
Examples:
  margay ipam check
  margay ipam check -o json > report.json";

pub(super) const IPAM_SPLIT: &str = "\
Examples:
  margay datastore migrate lock
  margay ipam split 2 --cidr=10.66.0.0/16
  margay datastore migrate unlock";

pub(super) const IPAM_RELEASE: &str = "\
Examples:
  margay ipam release --ip 10.66.0.10
  margay ipam release --from-report report.json

An address that a workload has is not released without --force; nobody is asked whether it is still used.";

pub(super) const MIGRATE: &str = "\
Examples:
  margay datastore migrate lock
  margay datastore migrate export > cluster.yaml
  export MARGAY_DATASTORE=https://10.0.0.1:2379
  margay datastore migrate import -f cluster.yaml
  margay datastore migrate unlock

The lock is exported as well: daemons of the new datastore wait for the unlock.";

pub(crate) const LAB_UP: &str = "\
Examples:
  margay lab up examples/03-tor-ebgp/tor.clab.yml
  TOR=frr margay lab up examples/03-tor-ebgp/tor.clab.yml";

pub(crate) const LAB_EXEC: &str = "\
Examples:
  margay lab exec host1                        a shell in host1
  margay lab exec host1 -- margay bgp summary
  margay lab exec -t tor host1/web1 -- ping -c 1 203.0.113.1";

/// What stands below the options of `get`.
pub(super) fn get() -> String {
    let name = |kind: &Kind| {
        let name = kind.name().to_lowercase();
        match kind.aliases().first() {
            Some(alias) => format!("{name} ({alias})"),
            None => name,
        }
    };
    let names: Vec<String> = Kind::all().iter().map(name).collect();
    let mut text = format!("{GET}\n\nKinds and their short names:\n");
    // Down the columns, as `ls` does.
    let rows = names.len().div_ceil(2);
    for (left, right) in names
        .iter()
        .zip(names.iter().skip(rows).map(String::as_str).chain([""]))
    {
        text.push_str(format!("  {left:<38}  {right}").trim_end());
        text.push('\n');
    }
    text
}
