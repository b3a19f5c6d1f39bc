//! Random objects and packets: the evaluator, the compiled program and the kernel give every packet the same verdict.
//!
//! The objects are those of the policy crate's own differential test. A packet enters the node from the workload
//! that has its source address, or from outside when none has; it may pass when egress at its sender and ingress at its
//! receiver say so, as far as they are workloads of this node.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use policy::compile::interpret;
use policy::eval::evaluate;
use policy::model::EndpointId;
use policy::packet::{Direction, Packet};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestError, TestRunner};
use serde_json::Value;

use crate::again;
use crate::common::Named;
use crate::generator::{config, objects, packet};
use crate::site::{Meaning, OUTSIDE, Site};

pub(crate) const TESTS: &[Named] = &[("evaluator_program_and_kernel_agree", agree)];

const MODELS: u32 = 300;
const PACKETS_PER_MODEL: usize = 80;
const ENDPOINTS: usize = 6;

fn agree() {
    let models = if again() { MODELS / 5 } else { MODELS };
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
    let site = RefCell::new(site);
    let (asked, allowed) = (Cell::new(0_usize), Cell::new(0_usize));

    let mut runner = TestRunner::new(Config {
        max_shrink_iters: 300,
        ..config(models)
    });
    // Half of the tables ask every list in order, half enter nearly every list by a lookup.
    let linear = prop_oneof![Just(1_usize), Just(16)];
    let strategy = (
        objects(),
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
        "{models} rulesets, {} packets, {} of them allowed",
        asked.get(),
        allowed.get()
    );
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
    for packet in packets {
        let (from, to) = (homes.get(&packet.src), homes.get(&packet.dst));
        // The kernel puts fragments together first, so that every packet has its ports; and it does not route between
        // an interface and itself.
        if from == to || packet.protocol.has_ports() && packet.dst_port.is_none() {
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
        for (id, direction) in [(from, Direction::Egress), (to, Direction::Ingress)] {
            let Some(id) = id else { continue };
            let decision = evaluate(&meaning.model, id, direction, packet);
            let verdict = interpret(&meaning.desired.program, id, direction, packet);
            assert_eq!(decision.allowed, verdict.allowed, "{direction} at {id}: {packet}");
            why += &format!("\n{direction} at {id}: {:?}", decision.decided_by);
            allowed &= decision.allowed;
        }
        // ICMP in IPv6, or the other way round, is no part of a connection.
        if packet
            .protocol
            .icmp_version()
            .is_some_and(|version| version != packet.version())
        {
            why += "\nICMP of the other family";
            allowed = false;
        }
        let place =
            |id: Option<&&EndpointId>| id.map_or(OUTSIDE.to_owned(), |id| local[*id].interface.clone());
        probes.push(Probe {
            packet: *packet,
            from: place(from),
            to: place(to),
            allowed,
            why,
        });
    }
    probes
}
