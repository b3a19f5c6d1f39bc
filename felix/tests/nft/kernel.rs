//! The writer against the kernel: what it sends, what survives, who is to blame.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use felix::nft::ruleset::{
    Base, Chain, Element, Field, Hook, KeyType, Map, Object, Op, Rule, Set, Table, Value, Verdict,
};
use felix::nft::{ApplyError, Engine, Options, Writer};

use super::common::Named;
use super::{listing, nft, nft_input, try_nft};

pub(crate) const TESTS: &[Named] = &[
    ("nothing_is_sent_when_nothing_changed", nothing_to_do),
    ("an_element_change_touches_no_rule", element_change),
    ("a_restart_adopts_the_table_and_sends_nothing", restart),
    ("a_restart_sends_only_what_differs", restart_with_differences),
    (
        "many_chains_are_recognised_after_a_restart",
        restart_with_many_chains,
    ),
    ("what_was_read_ahead_is_used_while_it_holds", read_ahead),
    ("a_killed_writer_leaves_the_table_to_its_successor", killed),
    ("a_flush_of_a_table_without_owner_is_repaired", flush_is_repaired),
    ("a_foreign_edit_of_rules_sets_and_maps_is_repaired", foreign_edits),
    ("commits_of_others_do_not_disturb", stale_generation),
    ("a_refused_rule_is_named_and_the_old_table_stays", refused_rule),
    ("a_jump_to_nowhere_is_named_before_anything_is_sent", invalid_jump),
    ("a_set_that_an_untouched_chain_needs_cannot_go", missing_set),
    ("jumps_in_a_circle_are_named", jump_loop),
    (
        "sets_and_chains_change_their_kind_under_their_name",
        change_of_kind,
    ),
    (
        "words_of_the_grammar_are_fine_as_interfaces_and_comments",
        keywords,
    ),
    ("counters_go_on_over_a_rewrite", counters),
    ("teardown_removes_the_table_and_only_it", teardown),
    ("a_batch_of_many_rules_fits_one_transaction", many_rules),
    ("a_large_table_is_written_in_pieces_that_nothing_leads_to", pieces),
    (
        "accepted_packets_are_not_lost_while_chains_are_rewritten",
        no_loss,
    ),
];

/// Tests of ownership, which the kernel has from 6.9 on.
pub(crate) const OWNER_TESTS: &[Named] = &[
    ("an_owned_table_survives_a_flush_by_others", owned_survives),
    (
        "a_second_writer_is_told_that_the_table_is_owned",
        owned_by_another,
    ),
];

/// Why tests of ownership cannot run here.
pub(crate) fn no_ownership() -> Option<String> {
    let owned = super::in_namespace(|| {
        Engine::open("felix")
            .unwrap()
            .apply(&example())
            .is_ok_and(|a| a.owned)
    });
    if owned == Ok(true) {
        None
    } else {
        Some("the kernel has no tables that outlive their owner".into())
    }
}

fn one(text: &str) -> Element {
    Element::network(text.parse().unwrap())
}

fn allow(port: u16) -> Rule {
    Rule::new()
        .equals(Field::L4Proto, Value::Proto(6))
        .equals(Field::ThDport, Value::Port(port))
        .in_set([Field::IpSaddr], Op::Eq, "s-web")
        .counter()
        .verdict(Verdict::Accept)
        .comment(format!("default.web/{port}"))
}

fn table(ports: &[u16], members: &[&str], interfaces: &[(&str, &str)]) -> Table {
    let mut table = Table::new("felix");
    table.add_set(Set::new("s-web", [KeyType::Ipv4Addr]).with(members.iter().map(|m| one(m))));
    table.add_set(Set::interval("s-net", KeyType::Ipv4Addr).with(["10.0.0.0/8", "11.0.0.0/8"].map(one)));
    let entries = interfaces.iter().map(|(interface, chain)| {
        (
            Element::One(Value::ifname(interface).unwrap()),
            Verdict::Goto((*chain).into()),
        )
    });
    table.add_map(Map::new("m-ep", [KeyType::IfName]).with(entries));
    let mut policy = Chain::new("p-web");
    policy.rules = ports.iter().map(|p| allow(*p)).collect();
    table.add_chain(policy);
    table.add_chain(Chain::new("p-other").rule(Rule::new().counter().verdict(Verdict::Drop)));
    table.add_chain(
        Chain::base("b-fwd", Base::filter(Hook::Forward, 0)).rule(Rule::new().then(
            felix::nft::ruleset::Statement::VerdictMap {
                fields: vec![Field::Iifname],
                map: "m-ep".into(),
            },
        )),
    );
    table
}

fn example() -> Table {
    table(
        &[80, 443],
        &["10.0.0.1", "10.0.0.2"],
        &[("cali1", "p-web"), ("cali2", "p-other")],
    )
}

/// What the kernel lists if the table is made from scratch.
fn fresh(table: &Table) -> String {
    let table = table.clone();
    super::in_namespace(move || {
        Engine::open("felix").unwrap().apply(&table).unwrap();
        listing().replace("\"flags\":[\"owner\",\"persist\"]", "")
    })
    .unwrap()
}

fn assert_fresh(table: &Table) {
    super::assert_lines(&strip_flags(&listing()), &strip_flags(&fresh(table)));
}

/// Flags of the table itself depend on who owns it now.
fn strip_flags(listing: &str) -> String {
    listing
        .lines()
        .filter(|line| !line.starts_with("table "))
        .collect::<Vec<_>>()
        .join("\n")
}

/// Applies after a predecessor is gone. Its socket may live on for a moment in a child that another test's thread
/// is just starting, between fork and exec.
pub(crate) fn succeed(engine: &mut Engine, table: &Table) -> felix::nft::Applied {
    for _ in 0..200 {
        match engine.apply(table) {
            Err(ApplyError::Owned { .. }) => std::thread::sleep(Duration::from_millis(10)),
            result => return result.unwrap(),
        }
    }
    panic!("the table stays owned");
}

fn nothing_to_do() {
    let mut engine = Engine::open("felix").unwrap();
    assert!(engine.apply(&example()).unwrap().messages > 0);
    let before = engine.generation().unwrap();
    // The same value made anew: nothing is shared with the first.
    let again = engine.apply(&example()).unwrap();
    assert_eq!((again.messages, engine.generation().unwrap()), (0, before));
}

fn element_change() {
    let mut engine = Engine::open("felix").unwrap();
    engine.apply(&example()).unwrap();
    let handles = || nft(&["-a", "list", "chain", "inet", "felix", "p-web"]);
    let before = handles();
    let next = table(
        &[80, 443],
        &["10.0.0.1", "10.0.0.3"],
        &[("cali1", "p-other"), ("cali3", "p-web")],
    );
    let applied = engine.apply(&next).unwrap();
    // One to remove and one to add, in the set and in the map.
    assert_eq!(
        (applied.messages, applied.changed),
        (4, vec!["m-ep".to_owned(), "s-web".to_owned()])
    );
    assert_eq!(handles(), before);
    assert_fresh(&next);
    // The same with everything else shared, as a renderer that keeps what it did not touch does it.
    let mut last = next.clone();
    last.add_set(Set::new("s-web", [KeyType::Ipv4Addr]).with([one("10.0.0.1"), one("10.0.0.9")]));
    last.add_set(Set::interval("s-net", KeyType::Ipv4Addr).with([one("10.0.0.0/9"), one("12.0.0.0/8")]));
    let entry = |name: &str, to: &str| {
        (
            Element::One(Value::ifname(name).unwrap()),
            Verdict::Goto(to.into()),
        )
    };
    last.add_map(
        Map::new("m-ep", [KeyType::IfName]).with([entry("cali1", "p-web"), entry("cali9", "p-web")]),
    );
    let applied = engine.apply(&last).unwrap();
    // Replaced entries, members out and in, ranges emptied and filled.
    assert_eq!((applied.messages, applied.changed.len()), (6, 3));
    assert_eq!(handles(), before);
    assert_fresh(&last);
    assert_eq!(engine.apply(&last).unwrap().messages, 0);
    assert_eq!(engine.audit().unwrap(), [""; 0]);
}

fn restart() {
    let mut first = Engine::open("felix").unwrap();
    first.apply(&example()).unwrap();
    let handles = nft(&["-a", "list", "ruleset"]);
    drop(first);
    let mut second = Engine::open("felix").unwrap();
    let applied = succeed(&mut second, &example());
    assert_eq!((applied.messages, applied.changed), (0, vec![]));
    let same = |text: &str| {
        text.lines()
            .filter(|l| !l.contains("flags owner") && !l.contains("# progname"))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(same(&nft(&["-a", "list", "ruleset"])), same(&handles));
}

fn restart_with_differences() {
    let mut first = Engine::open("felix").unwrap();
    first.apply(&example()).unwrap();
    drop(first);
    let next = table(&[80, 8080], &["10.0.0.2"], &[("cali2", "p-other")]);
    let mut second = Engine::open("felix").unwrap();
    let applied = succeed(&mut second, &next);
    assert_eq!(applied.changed, ["m-ep", "p-web", "s-web"]);
    assert_fresh(&next);
}

/// So many that two sockets read them.
fn restart_with_many_chains() {
    let with = |port: u16| {
        let mut table = example();
        for n in 0..1200 {
            let port = if n == 777 { port } else { 80 };
            let rule = Rule::new()
                .equals(Field::L4Proto, Value::Proto(6))
                .equals(Field::ThDport, Value::Port(port));
            table.add_chain(Chain::new(format!("c-{n}")).rule(rule.verdict(Verdict::Accept)));
        }
        table
    };
    let mut first = Engine::open("felix").unwrap();
    first.apply(&with(80)).unwrap();
    drop(first);
    let mut second = Engine::open("felix").unwrap();
    assert_eq!(succeed(&mut second, &with(80)).messages, 0);
    drop(second);
    let mut third = Engine::open("felix").unwrap();
    third.prepare().unwrap();
    assert_eq!(succeed(&mut third, &with(443)).changed, ["c-777"]);
    assert_eq!(third.audit().unwrap(), [""; 0]);
    // What is gone is missed by nobody, and what is missed is named.
    let mut less = with(443);
    less.chains.remove("c-777");
    assert_eq!(third.apply(&less).unwrap().changed, ["c-777"]);
    less.chains.remove("p-web");
    let error = third.apply(&less).unwrap_err();
    assert!(matches!(&error, ApplyError::Invalid(_)), "{error}");
    assert_eq!(third.apply(&with(80)).unwrap().changed, ["c-777"]);
    assert_eq!(third.audit().unwrap(), [""; 0]);
}

/// Through the end of its owner, and not past a change by somebody else.
fn read_ahead() {
    let mut first = Engine::open("felix").unwrap();
    first.apply(&example()).unwrap();
    let mut second = Engine::open("felix").unwrap();
    second.prepare().unwrap();
    drop(first);
    let next = table(&[80, 8080], &["10.0.0.2"], &[("cali2", "p-other")]);
    assert_eq!(succeed(&mut second, &next).changed, ["m-ep", "p-web", "s-web"]);
    assert_fresh(&next);
    second.teardown().unwrap();
    drop(second);
    let mut first = Engine::open_shared("felix").unwrap();
    first.apply(&example()).unwrap();
    let mut second = Engine::open_shared("felix").unwrap();
    second.prepare().unwrap();
    nft(&["add", "rule", "inet", "felix", "p-web", "drop"]);
    assert_eq!(second.apply(&example()).unwrap().changed, ["p-web"]);
    assert_fresh(&example());
}

/// A child that applies the example and waits to be killed. It is this program, run by name of a hidden test.
fn killed() {
    let engine = || Engine::open("felix").unwrap();
    // A socket that nobody closes properly: a process that is killed. `nft -i` keeps its socket, but cannot own;
    // so fork by way of a shell is no use, and this program is run again.
    let myself = std::env::current_exe().unwrap();
    let mut child = Command::new(myself)
        .env("FELIX_TEST_CHILD", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = String::new();
    let out = child.stdout.take().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut ready).unwrap();
    assert_eq!(ready, "applied\n");
    child.kill().unwrap();
    child.wait().unwrap();
    assert_fresh(&example());
    assert_eq!(succeed(&mut engine(), &example()).messages, 0);
}

/// The other side of [`killed`].
pub(crate) fn child() -> ! {
    let mut engine = Engine::open("felix").unwrap();
    engine.apply(&example()).unwrap();
    println!("applied");
    let mut line = String::new();
    // Ends when killed, or with its parent.
    let _ = std::io::stdin().read_line(&mut line);
    std::process::exit(0)
}

fn owned_survives() {
    let mut engine = Engine::open("felix").unwrap();
    assert!(engine.apply(&example()).unwrap().owned);
    nft(&["flush", "ruleset"]);
    assert_fresh(&example());
    assert!(try_nft(&["delete", "table", "inet", "felix"], "").is_err());
    assert!(try_nft(&["add", "rule", "inet", "felix", "p-web", "drop"], "").is_err());
    // It outlives its owner, and can then be removed.
    drop(engine);
    assert_fresh(&example());
    wait_for("the flush", || {
        nft(&["flush", "ruleset"]);
        nft(&["list", "ruleset"]).is_empty()
    });
}

fn owned_by_another() {
    let mut first = Engine::open("felix").unwrap();
    assert!(first.apply(&example()).unwrap().owned);
    let mut second = Engine::open("felix").unwrap();
    let error = second.apply(&example()).unwrap_err();
    assert!(
        matches!(error, ApplyError::Owned { port } if port != 0),
        "{error}"
    );
    drop(first);
    assert_eq!(succeed(&mut second, &example()).messages, 0);
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(5), "{what} did not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn shared() -> Writer {
    Writer::spawn(
        "felix",
        Options {
            own: false,
            poll: Duration::from_millis(50),
        },
    )
    .unwrap()
}

fn flush_is_repaired() {
    let writer = shared();
    assert!(!writer.apply_blocking(example()).unwrap().owned);
    nft(&["flush", "ruleset"]);
    wait_for("the repair", || writer.status().borrow().repairs == 1);
    assert_fresh(&example());
    assert_eq!(writer.status().borrow().last_repair, ["felix"]);
    assert_eq!(writer.apply_blocking(example()).unwrap().messages, 0);
}

fn foreign_edits() {
    let writer = shared();
    writer.apply_blocking(example()).unwrap();
    let edits = [
        ("add rule inet felix p-web drop", "p-web"),
        ("insert rule inet felix b-fwd counter accept", "b-fwd"),
        ("flush chain inet felix p-web", "p-web"),
        ("delete element inet felix s-web { 10.0.0.1 }", "s-web"),
        ("add element inet felix s-web { 10.9.9.9 }", "s-web"),
        ("add element inet felix s-net { 172.16.0.0/12 }", "s-net"),
        ("delete element inet felix m-ep { \"cali1\" }", "m-ep"),
        (
            "add chain inet felix x-strange; add rule inet felix x-strange drop",
            "x-strange",
        ),
        ("add set inet felix x-set { type ether_addr; }", "x-set"),
        ("chain inet felix b-fwd { policy drop; }", "b-fwd"),
    ];
    for (n, (edit, name)) in edits.iter().enumerate() {
        nft_input(&["-f", "-"], &format!("{edit}\n"));
        wait_for(edit, || writer.status().borrow().repairs == n as u64 + 1);
        assert_eq!(writer.status().borrow().last_repair, [*name], "{edit}");
        assert_fresh(&example());
    }
    drop(writer);
    assert_fresh(&example());
}

fn stale_generation() {
    for own in [true, false] {
        let mut engine = if own {
            Engine::open("felix")
        } else {
            Engine::open_shared("felix")
        }
        .unwrap();
        engine.apply(&example()).unwrap();
        for port in 1..20 {
            nft(&["add", "table", "ip", &format!("other{port}")]);
            let next = table(&[port], &["10.0.0.1"], &[("cali1", "p-web")]);
            let applied = engine.apply(&next).unwrap();
            assert!(applied.messages > 0);
        }
        assert_eq!(engine.drift().unwrap(), [""; 0]);
        engine.teardown().unwrap();
        nft(&["flush", "ruleset"]);
    }
}

fn refused_rule() {
    let mut engine = Engine::open("felix").unwrap();
    engine.apply(&example()).unwrap();
    let mut bad = table(&[80, 8080], &["10.0.0.7"], &[]);
    // Only the kernel knows that this bucket has more tokens than it can count.
    let bucket = felix::nft::ruleset::Limit {
        rate: 1,
        per: felix::nft::ruleset::RateUnit::Day,
        burst: u32::MAX,
        over: false,
    };
    bad.add_chain(
        Chain::new("p-bad")
            .rule(Rule::new().counter())
            .rule(Rule::new().then(bucket)),
    );
    bad.add_chain(Chain::new("p-other").rule(Rule::new().verdict(Verdict::Jump("p-bad".into()))));
    bad.add_chain(
        Chain::base("b-fwd", Base::filter(Hook::Forward, 0))
            .rule(Rule::new().verdict(Verdict::Jump("p-other".into()))),
    );
    let error = engine.apply(&bad).unwrap_err();
    assert_eq!(
        error.culprits().first(),
        Some(&Object::Rule {
            chain: "p-bad".into(),
            index: 1
        }),
        "{error}"
    );
    assert_fresh(&example());
    // Without the culprit it goes through.
    bad.add_chain(Chain::new("p-bad").rule(Rule::new().verdict(Verdict::Drop)));
    engine.apply(&bad).unwrap();
    assert_fresh(&bad);
}

fn invalid_jump() {
    let mut engine = Engine::open("felix").unwrap();
    let mut bad = example();
    bad.add_chain(Chain::new("p-other").rule(Rule::new().verdict(Verdict::Jump("p-none".into()))));
    let error = engine.apply(&bad).unwrap_err();
    assert_eq!(
        error.culprits(),
        [Object::Rule {
            chain: "p-other".into(),
            index: 0
        }]
    );
    assert_eq!(
        error.to_string(),
        "the table is not valid: chain p-other rule 0: no chain p-none to jump p-none"
    );
    assert_eq!(nft(&["list", "ruleset"]), "");
}

/// Parts that did not change are not looked at again, unless what they need did.
fn missing_set() {
    let mut engine = Engine::open("felix").unwrap();
    let good = example();
    engine.apply(&good).unwrap();
    let mut bad = good.clone();
    bad.sets.remove("s-web");
    let rule = |index| Object::Rule {
        chain: "p-web".into(),
        index,
    };
    assert_eq!(engine.apply(&bad).unwrap_err().culprits(), [rule(0), rule(1)]);
    let mut bad = good.clone();
    bad.add_map(Map::new("m-ep", [KeyType::IfName]).with([(
        Element::One(Value::ifname("cali1").unwrap()),
        Verdict::Goto("p-gone".into()),
    )]));
    assert_eq!(
        engine.apply(&bad).unwrap_err().culprits(),
        [Object::Map("m-ep".into())]
    );
    assert_eq!(engine.apply(&good).unwrap().messages, 0);
}

fn jump_loop() {
    let mut engine = Engine::open("felix").unwrap();
    engine.apply(&example()).unwrap();
    let mut bad = example();
    bad.add_chain(Chain::new("p-web").rule(Rule::new().verdict(Verdict::Jump("p-other".into()))));
    bad.add_chain(Chain::new("p-other").rule(Rule::new().verdict(Verdict::Jump("p-web".into()))));
    let error = engine.apply(&bad).unwrap_err();
    let culprit = error
        .culprits()
        .first()
        .and_then(|o| o.chain().map(str::to_owned));
    assert!(matches!(culprit.as_deref(), Some("p-web" | "p-other")), "{error}");
    assert_fresh(&example());
}

fn change_of_kind() {
    let mut engine = Engine::open("felix").unwrap();
    engine.apply(&example()).unwrap();
    let mut next = example();
    // A set of another key type, a base chain at another priority, a plain chain that becomes a base chain.
    next.add_set(Set::interval("s-web", KeyType::Ipv4Addr).with([one("10.0.0.0/24")]));
    next.add_set(Set::new("s-net", [KeyType::Ipv6Addr]).with([one("fd00::1/128")]));
    let mut base = Chain::base("b-fwd", Base::filter(Hook::Forward, 7));
    base.rules = next.chains["b-fwd"].rules.clone();
    next.add_chain(base);
    engine.apply(&next).unwrap();
    assert_fresh(&next);
    // And back, by another engine that has to read what is there.
    drop(engine);
    let mut engine = Engine::open("felix").unwrap();
    succeed(&mut engine, &example());
    assert_fresh(&example());
    // A map in the place of a set, and a base chain where map entries pointed to.
    let mut last = table(&[], &[], &[("cali2", "p-other")]);
    last.sets.remove("s-net");
    last.add_map(Map::new("s-net", [KeyType::Mark]));
    last.add_chain(Chain::base("p-web", Base::filter(Hook::Input, 3)).rule(Rule::new().counter()));
    engine.apply(&last).unwrap();
    assert_fresh(&last);
}

fn keywords() {
    let mut table = example();
    let interface = |name: &str| (Element::One(Value::ifname(name).unwrap()), Verdict::Drop);
    table.add_map(
        Map::new("m-words", [KeyType::IfName]).with(["th", "fwd", "accept", "1", "a.b-c_d@0"].map(interface)),
    );
    table.add_chain(
        Chain::new("c-fwd").rule(
            Rule::new()
                .verdict(Verdict::Drop)
                .comment("} drop; flush ruleset # $x"),
        ),
    );
    // Shared: nft 1.0.6 prints the flag of a table without living owner in a way that it does not read.
    Engine::open_shared("felix").unwrap().apply(&table).unwrap();
    let listed = nft(&["list", "ruleset"]);
    let again = super::in_namespace(move || {
        nft_input(&["-f", "-"], &listed);
        listing()
    });
    super::assert_lines(&listing(), &again.unwrap());
}

fn ping(arguments: &[&str]) -> bool {
    Command::new("ping")
        .args(arguments)
        .stdout(Stdio::null())
        .status()
        .unwrap()
        .success()
}

fn run(command: &str) {
    let words: Vec<&str> = command.split(' ').collect();
    let status = Command::new(words[0]).args(&words[1..]).status().unwrap();
    assert!(status.success(), "{command}");
}

/// A table that counts what comes in, with `n` rules that never match after it.
fn counting(n: u16) -> Table {
    let mut table = Table::new("felix");
    let mut chain = Chain::base("b-in", Base::filter(Hook::Input, 0));
    chain.rules.push(
        Rule::new()
            .equals(Field::IcmpType, Value::Icmp(8))
            .counter()
            .comment("ping"),
    );
    chain.rules.extend((1..=n).map(|p| {
        Rule::new()
            .equals(Field::L4Proto, Value::Proto(6))
            .equals(Field::ThDport, Value::Port(p))
            .counter()
    }));
    table.add_chain(chain);
    table
}

fn counters() {
    run("ip link set lo up");
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let writer = Writer::spawn("felix", Options::default()).unwrap();
    let pings = || {
        let all = runtime.block_on(writer.counters(None)).unwrap();
        all.into_iter()
            .find(|c| c.comment == "ping")
            .map(|c| (c.packets, c.bytes))
    };
    runtime.block_on(writer.apply(counting(0))).unwrap();
    assert_eq!(pings(), Some((0, 0)));
    assert!(ping(&["-c", "3", "-i", "0.01", "127.0.0.1"]));
    assert_eq!(pings(), Some((3, 252)));
    runtime.block_on(writer.apply(counting(2))).unwrap();
    assert_eq!(pings(), Some((3, 252)));
    assert!(ping(&["-c", "2", "-i", "0.01", "127.0.0.1"]));
    assert_eq!(pings(), Some((5, 420)));
}

fn teardown() {
    nft(&["add", "table", "inet", "other"]);
    let mut engine = Engine::open("felix").unwrap();
    engine.apply(&example()).unwrap();
    engine.teardown().unwrap();
    engine.teardown().unwrap();
    assert_eq!(nft(&["list", "ruleset"]), "table inet other {\n}\n");
    assert!(engine.apply(&example()).unwrap().messages > 0);
    assert_eq!(listing().lines().filter(|l| l.starts_with("table ")).count(), 2);
}

fn many_rules() {
    let mut table = example();
    for n in 0..100 {
        let mut chain = Chain::new(format!("p-{n}"));
        chain.rules = (0..30).map(|p| allow(p + 1000 * (n % 60))).collect();
        table.add_chain(chain);
    }
    let members = (0..3000u32).map(|n| Element::one(std::net::Ipv4Addr::from_bits(0x0a00_0000 + n)));
    table.add_set(Set::new("s-web", [KeyType::Ipv4Addr]).with(members));
    let nets = (0..3000u32).map(|n| {
        one(&format!(
            "{}/30",
            std::net::Ipv4Addr::from_bits(0x0b00_0000 + n * 8)
        ))
    });
    table.add_set(Set::interval("s-net", KeyType::Ipv4Addr).with(nets));
    let applied = Engine::open("felix").unwrap().apply(&table).unwrap();
    assert!(applied.messages > 3000, "{applied:?}");
    let mut again = Engine::open("felix").unwrap();
    assert_eq!(succeed(&mut again, &table).messages, 0);
}

/// A table of several pieces of two megabytes.
const LARGE: [u16; 2] = [250, 40];

fn large() -> Table {
    let mut table = example();
    let mut base = Chain::base("b-large", Base::filter(Hook::Forward, 0));
    for n in 0..LARGE[0] {
        let mut chain = Chain::new(format!("p-large-{n}"));
        chain.rules = (0..LARGE[1]).map(|p| allow(p + 1000 * (n % 60))).collect();
        table.add_chain(chain);
        base = base.rule(Rule::new().verdict(Verdict::Jump(format!("p-large-{n}"))));
    }
    table.add_chain(base);
    table
}

fn pieces() {
    let table = large();
    let rules = usize::from(LARGE[0]) * usize::from(LARGE[1]);
    for own in [true, false] {
        let open = || {
            if own {
                Engine::open("felix")
            } else {
                Engine::open_shared("felix")
            }
        };
        let mut engine = open().unwrap();
        // Others commit meanwhile, not as often as it is tried.
        let applied = std::thread::scope(|scope| {
            scope.spawn(|| {
                for n in 0..10 {
                    nft(&["add", "table", "ip", &format!("other{n}")]);
                }
            });
            engine.apply(&table).unwrap()
        });
        assert!(applied.messages > rules, "{applied:?}");
        assert_eq!(engine.apply(&table).unwrap().messages, 0);
        drop(engine);
        let mut again = open().unwrap();
        assert_eq!(succeed(&mut again, &table).messages, 0);
        again.teardown().unwrap();
        nft(&["flush", "ruleset"]);
    }

    // A writer that was killed between two of them leaves a table that enforces nothing, and the next one completes it.
    let left = "table inet felix {\n chain p-large-0 {\n tcp dport 1 counter accept\n }\n}\n";
    nft_input(&["-f", "-"], left);
    let mut next = Engine::open_shared("felix").unwrap();
    assert!(!next.exists().unwrap());
    assert!(next.apply(&table).unwrap().messages > rules);
    assert!(next.exists().unwrap());
    drop(next);
    let mut again = Engine::open_shared("felix").unwrap();
    assert_eq!(succeed(&mut again, &table).messages, 0);
    again.teardown().unwrap();

    // What is refused in the last of them leaves no table, as there was none.
    let mut bad = table.clone();
    let bucket = felix::nft::ruleset::Limit {
        rate: 1,
        per: felix::nft::ruleset::RateUnit::Day,
        burst: u32::MAX,
        over: false,
    };
    bad.add_chain(Chain::new("p-zzz").rule(Rule::new().then(bucket)));
    let mut engine = Engine::open("felix").unwrap();
    let error = engine.apply(&bad).unwrap_err();
    let culprit = Object::Rule {
        chain: "p-zzz".into(),
        index: 0,
    };
    assert_eq!(error.culprits().first(), Some(&culprit), "{error}");
    assert_eq!(nft(&["list", "ruleset"]), "");
    assert!(engine.apply(&table).unwrap().messages > rules);
    assert_eq!(engine.audit().unwrap(), [""; 0]);
}

/// Accepted packets keep coming through while their chain, between a drop and a drop, is rewritten.
fn no_loss() {
    run("ip link set lo up");
    let with = |n: u16| {
        let mut table = Table::new("felix");
        let mut base = Base::filter(Hook::Input, 0);
        base.policy = felix::nft::ruleset::Policy::Drop;
        table.add_chain(
            Chain::base("b-in", base)
                .rule(Rule::new().verdict(Verdict::Jump("p-a".into())))
                .rule(allow_all(n)),
        );
        let mut policy = Chain::new("p-a");
        policy.rules = (1..=n)
            .map(|p| {
                Rule::new()
                    .equals(Field::L4Proto, Value::Proto(6))
                    .equals(Field::ThDport, Value::Port(p))
                    .verdict(Verdict::Drop)
            })
            .collect();
        policy.rules.push(allow_all(n));
        table.add_chain(policy);
        table
    };
    let mut engine = Engine::open("felix").unwrap();
    engine.apply(&with(1)).unwrap();
    let receiver = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let sender = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    receiver
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    let to = receiver.local_addr().unwrap();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = std::sync::Arc::clone(&stop);
    let count = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
    let counted = std::sync::Arc::clone(&count);
    let sending = std::thread::spawn(move || {
        let mut sent = 0u32;
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
            sender.send_to(&sent.to_be_bytes(), to).unwrap();
            sent += 1;
            counted.store(sent, std::sync::atomic::Ordering::Relaxed);
            // The receiver's queue holds some hundred packets.
            std::thread::sleep(Duration::from_micros(50));
        }
        sent
    });
    let sent_all = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let done = std::sync::Arc::clone(&sent_all);
    let receiving = std::thread::spawn(move || {
        let mut buffer = [0; 16];
        let mut received = 0u32;
        loop {
            // A sender that was not scheduled for a while is no end.
            let last = done.load(std::sync::atomic::Ordering::Relaxed);
            match receiver.recv(&mut buffer) {
                Ok(_) => received += 1,
                Err(_) if last => return received,
                Err(_) => {}
            }
        }
    });
    let limit = Instant::now() + Duration::from_secs(30);
    for n in 1.. {
        // On a busy machine the sender may not have had its turn yet.
        let enough = count.load(std::sync::atomic::Ordering::Relaxed) > 200;
        if n >= 60 && (enough || Instant::now() > limit) {
            break;
        }
        succeed(&mut engine, &with(n % 7 + 2));
        if n % 10 == 0 {
            engine = {
                drop(engine);
                Engine::open("felix").unwrap()
            };
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let sent = sending.join().unwrap();
    sent_all.store(true, std::sync::atomic::Ordering::Relaxed);
    // What came through while nobody took it from the full queue came through.
    let received = receiving.join().unwrap() + receive_queue_overflows();
    assert!(sent > 200, "{sent}");
    assert_eq!(received, sent);
}

/// Datagrams of this namespace that found the queue of their socket full (`RcvbufErrors`, counted after input rules).
fn receive_queue_overflows() -> u32 {
    let text = std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
    let udp: Vec<Vec<&str>> = (text.lines())
        .filter(|line| line.starts_with("Udp:"))
        .map(|line| line.split_whitespace().collect())
        .collect();
    let [names, values] = udp.as_slice() else {
        panic!("{text}");
    };
    let column = names.iter().position(|name| *name == "RcvbufErrors").unwrap();
    values[column].parse().unwrap()
}

fn allow_all(n: u16) -> Rule {
    Rule::new().verdict(Verdict::Accept).comment(format!("rest/{n}"))
}
