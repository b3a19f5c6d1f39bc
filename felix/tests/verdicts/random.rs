//! Random objects and packets: the evaluator, the compiled program and the kernel give every packet the same verdict.
//!
//! The objects are those of the policy crate's own differential test. A packet enters the node from the workload
//! that has its source address, or from outside when none has; it may pass when egress at its sender and ingress at its
//! receiver say so, as far as they are workloads of this node, and what host endpoints say of the uplink, when it
//! crosses that. The node itself is an end too: it reaches its workloads unpoliced, and they do not reach it.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use policy::compile::{interpret, interpret_host};
use policy::eval::{Passage, evaluate, evaluate_passage};
use policy::model::EndpointId;
use policy::packet::{Direction, Packet};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestError, TestRunner};
use serde_json::Value;

use crate::again;
use crate::common::Named;
use crate::generator::{NODE_ADDRESSES, UPLINK, config, objects, objects_about_hosts, packet};
use crate::site::{Meaning, NODE, OUTSIDE, Site};

pub(crate) const TESTS: &[Named] = &[
    ("evaluator_program_and_kernel_agree", agree),
    (
        "evaluator_program_and_kernel_agree_about_host_endpoints",
        agree_about_hosts,
    ),
];

const MODELS: u32 = 300;
const MODELS_WITH_HOSTS: u32 = 150;
const PACKETS_PER_MODEL: usize = 80;
const ENDPOINTS: usize = 6;

fn agree() {
    // Without a host endpoint that speaks for an interface, the node itself is not of interest.
    compare(MODELS, objects().boxed(), false);
}

fn agree_about_hosts() {
    compare(MODELS_WITH_HOSTS, objects_about_hosts().boxed(), true);
}

fn compare(models: u32, objects: BoxedStrategy<Vec<Value>>, as_host: bool) {
    let models = if again() { models / 5 } else { models };
    let mut site = Site::new("n");
    // Any workload may get any of the addresses; the model says which.
    let addresses: Vec<IpAddr> = (1..8)
        .flat_map(|n| [format!("10.0.0.{n}"), format!("fd00::{n}")])
        .map(|text| text.parse().unwrap())
        .collect();
    for n in 0..ENDPOINTS {
        let own = [format!("198.51.100.{n}"), format!("2001:db8:1::{n}")];
        let own = own.map(|text| text.parse().unwrap());
        site.attach_silent(&format!("cali{n}"), &own, &addresses);
    }
    site.silence(OUTSIDE);
    if as_host {
        site.give_node(NODE_ADDRESSES.map(|text| text.parse().unwrap()));
    }
    let site = RefCell::new(site);
    let (asked, allowed) = (Cell::new(0_usize), Cell::new(0_usize));
    let at_host = Cell::new((0_usize, 0_usize));

    let mut runner = TestRunner::new(Config {
        max_shrink_iters: 300,
        ..config(models)
    });
    // Half of the tables ask every list in order, half enter nearly every list by a lookup.
    let linear = prop_oneof![Just(1_usize), Just(16)];
    let strategy = (
        objects,
        prop::collection::vec(packet(), PACKETS_PER_MODEL),
        linear,
    );
    let result = runner.run(&strategy, |(objects, packets, linear)| {
        let mut site = site.borrow_mut();
        site.config.linear_rules = linear;
        let meaning = site.apply(&objects);
        site.assert_listing_loads_again();
        let probes = probes(&meaning, &packets);
        let sent: Vec<(&str, Packet)> = probes.iter().map(|p| (p.from.as_str(), p.packet)).collect();
        let arrived = site.probes(&sent);
        for (probe, place) in probes.iter().zip(arrived) {
            let expected = probe.allowed.then(|| probe.to.clone());
            prop_assert_eq!(
                &place,
                &expected,
                "{} from {}: {}",
                probe.packet,
                probe.from,
                probe.why
            );
            asked.set(asked.get() + 1);
            allowed.set(allowed.get() + usize::from(probe.allowed));
            if probe.at_host {
                let (all, passed) = at_host.get();
                at_host.set((all + 1, passed + usize::from(probe.allowed)));
            }
        }
        Ok(())
    });
    match result {
        Ok(()) => {}
        Err(TestError::Fail(reason, (objects, _, linear))) => {
            panic!(
                "{reason}\nlists above {linear} rules by lookup\n{}",
                serde_json::to_string_pretty(&Value::from(objects)).unwrap()
            )
        }
        Err(TestError::Abort(reason)) => panic!("{reason}"),
    }
    println!(
        "{models} rulesets, {} packets, {} of them allowed; of host endpoints (all, allowed) {:?}",
        asked.get(),
        allowed.get(),
        at_host.get()
    );
    if as_host {
        let (all, passed) = at_host.get();
        assert!(all >= 10 * models as usize && passed * 10 > all && (all - passed) * 10 > all);
    }
    // A generator that no longer gets packets through would agree on nothing of interest.
    let (asked, allowed) = (asked.get(), allowed.get());
    assert!(asked >= 20 * models as usize && allowed * 10 > asked && (asked - allowed) * 10 > asked);
}

/// A packet, and what must become of it.
pub(crate) struct Probe {
    pub(crate) packet: Packet,
    /// Where it comes from, and where it goes to if it may.
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) allowed: bool,
    /// A host endpoint was asked.
    pub(crate) at_host: bool,
    /// Who decided.
    pub(crate) why: String,
}

/// The packets that a kernel can be asked about with a verdict for each.
pub(crate) fn probes(meaning: &Meaning, packets: &[Packet]) -> Vec<Probe> {
    let local = &meaning.desired.endpoints;
    let homes: BTreeMap<IpAddr, &EndpointId> = local
        .iter()
        .flat_map(|(id, endpoint)| endpoint.addresses.iter().map(move |address| (*address, id)))
        .collect();
    let mut flows = BTreeSet::new();
    let mut probes = Vec::new();
    let hosts = &meaning.desired.program.hosts;
    let uplink = hosts
        .interfaces
        .get(UPLINK)
        .or(hosts.others.as_ref())
        .map(String::as_str);
    for packet in packets {
        let (from, to) = (homes.get(&packet.src), homes.get(&packet.dst));
        let is_node =
            |address: IpAddr, home: Option<&&EndpointId>| home.is_none() && meaning.own.contains(&address);
        let (by_node, to_node) = (is_node(packet.src, from), is_node(packet.dst, to));
        if by_node && to_node {
            continue;
        }
        // The kernel puts fragments together first, so that every packet has its ports; and it does not route between
        // an interface and itself.
        if from == to && !by_node && !to_node || packet.protocol.has_ports() && packet.dst_port.is_none() {
            continue;
        }
        // The second packet of a flow, or its answer, would not be asked about. Echo requests carry an identifier.
        let mut ends = [(packet.src, packet.src_port), (packet.dst, packet.dst_port)];
        ends.sort();
        if packet.icmp.is_none() && !flows.insert((packet.protocol, ends)) {
            continue;
        }
        let mut why = String::new();
        let mut allowed = true;
        let ends = [(from, Direction::Egress), (to, Direction::Ingress)];
        for (id, direction) in ends.into_iter().filter(|_| !by_node && !to_node) {
            let Some(id) = id else { continue };
            let decision = evaluate(&meaning.model, id, direction, packet);
            let verdict = interpret(&meaning.desired.program, id, direction, packet);
            assert_eq!(decision.allowed, verdict.allowed, "{direction} at {id}: {packet}");
            why += &format!("\n{direction} at {id}: {:?}", decision.decided_by);
            allowed &= decision.allowed;
        }
        if to_node && from.is_some() {
            why += "\ndefaultEndpointToHostAction";
            allowed = false;
        }
        let outside = |home: Option<&&EndpointId>, node: bool| uplink.filter(|_| home.is_none() && !node);
        let (inside, outside) = (outside(from, by_node), outside(to, to_node));
        let passage = match (by_node, to_node) {
            (true, _) => Passage::Output(outside),
            (_, true) => Passage::Input(inside),
            _ => Passage::Forward(inside, outside),
        };
        let at_host = inside.is_some() || outside.is_some();
        let said = evaluate_passage(&meaning.model, &hosts.failsafe, passage, packet);
        for (name, stage, direction, decision) in &said.stages {
            let done = interpret_host(&meaning.desired.program, name, *stage, *direction, packet);
            assert_eq!(
                decision.outcome, done.outcome,
                "{stage:?} {direction} at {name}: {packet}"
            );
            why += &format!(
                "\n{stage:?} {direction} at {name}: {:?} by {:?}",
                decision.outcome, decision.decided_by
            );
        }
        allowed &= said.allowed;
        // ICMP in IPv6, or the other way round, is no part of a connection.
        if packet
            .protocol
            .icmp_version()
            .is_some_and(|version| version != packet.version())
        {
            // Only who asks for connections drops it: at workloads always, at hosts where there is policy.
            if at_host || by_node || to_node {
                continue;
            }
            why += "\nICMP of the other family";
            allowed = false;
        }
        let place = |id: Option<&&EndpointId>, node: bool| match id {
            Some(id) => local[*id].interface.clone(),
            None if node => NODE.to_owned(),
            None => OUTSIDE.to_owned(),
        };
        probes.push(Probe {
            packet: *packet,
            from: place(from, by_node),
            to: place(to, to_node),
            allowed,
            at_host,
            why,
        });
    }
    probes
}
