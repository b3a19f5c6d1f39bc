//! Groups, tiers, policies and their rules as chains.

use std::collections::BTreeMap;
use std::sync::Arc;

use policy::compile::{
    Action, GroupId, Match as Condition, Policy, PolicyId, Program, Rule as Compiled, Side, TierChain,
    TierEnd, policy_id,
};
use policy::model::{Hook, PolicyKind};
use policy::packet::{Direction, IpVersion};

use super::index::{Item, Reads};
use super::lists::{self, List};
use super::{Input, LOG_LIMIT, denial, deny_rule, drop_rule, log_rule, said};
use crate::flowlog::{Reason, Tag};
use crate::nft::ruleset::{
    COMMENT_MAX, Chain, Element, Field, MarkSource, Match, Op, Rule, Statement, Table, Value, Verdict,
};

/// Chain that a passed packet goes through on its way out of a tier.
pub(super) const PASSED: &str = "passed";
/// Protocols with ports that rules can name: TCP, UDP, SCTP.
const WITH_PORTS: [u8; 3] = [6, 17, 132];

/// Chain name of every group.
pub(super) fn chain_names(program: &Program) -> BTreeMap<GroupId, String> {
    program
        .groups
        .keys()
        .map(|id| (id.clone(), id.as_str().to_owned()))
        .collect()
}

/// Whether any policy passes, so that the mark is in use at all.
pub(super) fn uses_pass(input: &Input<'_>) -> bool {
    *input
        .passes
        .get_or_init(|| input.program.policies.values().any(|policy| passes(policy)))
}

/// Whether the policy passes to the next tier. A profile that passes ends itself only.
pub(super) fn passes(policy: &Policy) -> bool {
    !is_profile(policy) && (policy.has_pass(Direction::Ingress) || policy.has_pass(Direction::Egress))
}

fn is_profile(policy: &Policy) -> bool {
    policy.key.kind == PolicyKind::Profile
}

pub(super) fn body_name(id: &PolicyId, direction: Direction) -> String {
    let letter = match direction {
        Direction::Ingress => 'i',
        Direction::Egress => 'e',
    };
    format!("{letter}-{id}")
}

/// Adds the chains of every group. The lists that they jump to are [`lists`].
pub(super) fn groups(input: &Input<'_>, table: &mut Table) {
    for (id, group) in &input.program.groups {
        let mut chain = Chain::new(id.as_str());
        for tier in &group.tiers {
            chain = chain.rule(Rule::new().verdict(Verdict::Jump(tier.id.as_str().to_owned())));
        }
        for profile in &group.profiles {
            chain = chain.rule(Rule::new().verdict(Verdict::Jump(body_name(profile, group.direction))));
        }
        let reason = Reason::NoMatch {
            direction: group.direction,
        };
        table.add_chain(guarded(
            input,
            (chain.rule(log_rule(reason))).rule(deny_rule(input, "nothing allowed it")),
        ));
    }
    if uses_pass(input) {
        table.add_chain(
            Chain::new(PASSED)
                .rule(Rule::new().then(Statement::SetMark(MarkSource::clear(input.config.pass_mark)))),
        );
    }
}

/// A list that a group needs.
#[derive(Clone, Debug)]
pub(super) enum What {
    /// The policies of a tier.
    Tier(TierChain, Direction),
    /// The rules of a policy or profile.
    Body(PolicyId, Direction),
}

/// All lists that groups of workloads and of the node's own interfaces need, by the names of their chains.
pub(super) fn lists(input: &Input<'_>) -> BTreeMap<String, What> {
    let program = input.program;
    let mut all = BTreeMap::new();
    let mut add = |tiers: &[TierChain], profiles: &[PolicyId], direction: Direction| {
        for tier in tiers {
            if all.contains_key(tier.id.as_str()) {
                continue;
            }
            all.insert(tier.id.as_str().to_owned(), What::Tier(tier.clone(), direction));
            for policy in &tier.policies {
                all.insert(
                    body_name(policy, direction),
                    What::Body(policy.clone(), direction),
                );
            }
        }
        for profile in profiles {
            all.insert(
                body_name(profile, direction),
                What::Body(profile.clone(), direction),
            );
        }
    };
    for group in program.hosts.groups.values() {
        add(&group.tiers, &group.profiles, group.direction);
    }
    for group in program.groups.values() {
        add(&group.tiers, &group.profiles, group.direction);
    }
    all.retain(|_, what| match what {
        What::Tier(..) => true,
        What::Body(id, _) => program.policies.contains_key(id),
    });
    all
}

impl What {
    /// The policies that the list holds, as far as they exist.
    pub(super) fn ids(&self) -> &[PolicyId] {
        match self {
            What::Tier(tier, _) => &tier.policies,
            What::Body(id, _) => std::slice::from_ref(id),
        }
    }

    /// The same as they are now.
    pub(super) fn policies(&self, input: &Input<'_>) -> Vec<Arc<Policy>> {
        let ids = self.ids().iter();
        ids.filter_map(|id| input.program.policies.get(id))
            .cloned()
            .collect()
    }

    /// Adds the chains and maps of the list, whose first chain is `name`. Returns the sets whose members decided what
    /// they are.
    pub(super) fn add(&self, input: &Input<'_>, name: &str, table: &mut Table) -> Reads {
        match self {
            What::Tier(tier, direction) => {
                let direction = *direction;
                let list = TierList {
                    input,
                    tier,
                    direction,
                };
                lists::add(input, direction, &list, name, table)
            }
            What::Body(id, direction) => match input.program.policies.get(id) {
                Some(policy) => {
                    let direction = *direction;
                    let list = RuleWriter {
                        input,
                        policy,
                        direction,
                    };
                    lists::add(input, direction, &list, name, table)
                }
                None => Reads::new(),
            },
        }
    }
}

/// A chain that the kernel refused, or that needs a set it refused, denies everything until its object changes.
pub(super) fn guarded(input: &Input<'_>, chain: Chain) -> Chain {
    let refused = |name: &str| input.quarantine.contains_key(name);
    let needs_refused_set = chain
        .rules
        .iter()
        .flat_map(|rule| &rule.statements)
        .any(|statement| match statement {
            Statement::Match(Match::InSet { set, .. }) => refused(set),
            _ => false,
        });
    if refused(&chain.name) || needs_refused_set {
        return Chain::new(chain.name).rule(drop_rule("quarantined: the kernel refused this policy"));
    }
    chain
}

/// The policies of a tier, with what comes after them.
struct TierList<'a> {
    input: &'a Input<'a>,
    tier: &'a TierChain,
    direction: Direction,
}

impl List for TierList<'_> {
    fn items(&self) -> Vec<Item<'_>> {
        let policies = &self.input.program.policies;
        let rules = |id| (policies.get(id)).map_or(&[][..], |policy| policy.rules(self.direction));
        self.tier.policies.iter().map(rules).collect()
    }

    /// Cells of equal policies are shared by all lists of the tier.
    fn identity(&self) -> String {
        format!(
            "{} {} {:?}",
            self.direction.as_str(),
            self.tier.tier,
            self.tier.end
        )
    }

    fn item(&self, number: usize) -> String {
        (self.tier.policies.get(number)).map_or_else(String::new, ToString::to_string)
    }

    fn append(&self, mut chain: Chain, items: &[usize]) -> Chain {
        let bit = self.input.config.pass_mark;
        for policy in items.iter().filter_map(|number| self.tier.policies.get(*number)) {
            let body = body_name(policy, self.direction);
            chain = chain.rule(Rule::new().verdict(Verdict::Jump(body)));
            let passes =
                (self.input.program.policies.get(policy)).is_some_and(|body| body.has_pass(self.direction));
            if passes {
                chain = chain.rule(
                    Rule::new()
                        .then(Match::Masked {
                            field: Field::Mark,
                            mask: bit,
                            op: Op::Eq,
                            value: bit,
                        })
                        .verdict(Verdict::Goto(PASSED.into())),
                );
            }
        }
        match self.tier.end {
            TierEnd::Pass => chain,
            TierEnd::Deny => {
                let tier = &self.tier.tier;
                let comment = fit(format!("end of tier {tier}"), COMMENT_MAX);
                let reason = Reason::TierEnd {
                    direction: self.direction,
                    tier: tier.clone(),
                };
                (chain.rule(log_rule(reason))).rule(deny_rule(self.input, &comment))
            }
        }
    }
}

/// Cuts a text of names, which are ASCII by the API's rules, to what the kernel carries.
pub(super) fn fit(mut text: String, longest: usize) -> String {
    text.retain(|c| c.is_ascii_graphic() && c != '"' || c == ' ');
    text.truncate(longest);
    text
}

/// Writes the rules of one policy in one direction.
pub(super) struct RuleWriter<'a> {
    pub(super) input: &'a Input<'a>,
    pub(super) policy: &'a Policy,
    pub(super) direction: Direction,
}

impl List for RuleWriter<'_> {
    fn items(&self) -> Vec<Item<'_>> {
        self.policy.rules(self.direction).chunks(1).collect()
    }

    fn identity(&self) -> String {
        format!("{} {}", self.direction.as_str(), self.policy.key)
    }

    fn item(&self, number: usize) -> String {
        number.to_string()
    }

    fn append(&self, mut chain: Chain, items: &[usize]) -> Chain {
        let rules = self.policy.rules(self.direction);
        for rule in items.iter().filter_map(|number| rules.get(*number)) {
            for statements in self.alternatives(rule) {
                if rule.action == Action::Deny {
                    // A rule of its own: a limit that is used up ends its rule, and must not end the one that drops.
                    let mut line = Rule {
                        statements: statements.clone(),
                        comment: None,
                    };
                    for statement in said(&self.tag(rule), LOG_LIMIT) {
                        line = line.then(statement);
                    }
                    chain = chain.rule(line);
                }
                let mut line = Rule {
                    statements,
                    comment: Some(self.comment(rule)),
                };
                for statement in self.action(rule) {
                    line = line.then(statement);
                }
                chain = chain.rule(line);
            }
        }
        chain
    }
}

impl RuleWriter<'_> {
    /// `Kind namespace/name ingress 3 Deny`: what `nft list` shows beside the counter. Rules count from 1.
    fn comment(&self, rule: &Compiled) -> String {
        let number = rule.index + 1;
        let tail = format!(" {} {number} {}", self.direction.as_str(), rule.action);
        let mut head = fit(
            self.policy.key.to_string(),
            COMMENT_MAX.saturating_sub(tail.len()),
        );
        head.push_str(&tail);
        head
    }

    fn tag(&self, rule: &Compiled) -> Tag {
        Tag {
            denied: rule.action == Action::Deny,
            reason: Reason::Rule {
                direction: self.direction,
                policy: policy_id(&self.policy.key).to_string(),
                rule: rule.index + 1,
            },
        }
    }

    fn action(&self, rule: &Compiled) -> Vec<Statement> {
        match rule.action {
            Action::Allow => {
                let mark = Statement::SetMark(MarkSource::or(self.input.config.accept_mark));
                match self.policy.hook {
                    Hook::Tracked => vec![Statement::Counter, Verdict::Accept.into()],
                    Hook::Untracked => vec![
                        Statement::Counter,
                        Statement::NoTrack,
                        mark,
                        Verdict::Accept.into(),
                    ],
                    Hook::PreDnat => vec![Statement::Counter, mark, Verdict::Accept.into()],
                }
            }
            Action::Deny => vec![Statement::Counter, denial(self.input)],
            Action::Pass if is_profile(self.policy) => vec![Statement::Counter, Verdict::Return.into()],
            Action::Pass => vec![
                Statement::Counter,
                Statement::SetMark(MarkSource::or(self.input.config.pass_mark)),
                Verdict::Return.into(),
            ],
            Action::Log => {
                let [limit, log] = said(&self.tag(rule), self.input.log_limit);
                vec![Statement::Counter, limit, log]
            }
        }
    }

    /// The conditions of a rule as one or more lists of statements, of which a packet matches at most one.
    fn alternatives(&self, rule: &Compiled) -> Vec<Vec<Statement>> {
        let mut all: Vec<Vec<Statement>> = vec![Vec::new()];
        if let Some(family) = rule.family {
            // An address match says the family by itself; anything else does not.
            let said = rule.matches.iter().any(|condition| {
                matches!(
                    condition,
                    Condition::Net { .. } | Condition::Set { .. } | Condition::NamedPort { .. }
                )
            });
            if !said {
                let value = match family {
                    IpVersion::V4 => Value::IPV4,
                    IpVersion::V6 => Value::IPV6,
                };
                push(&mut all, compare(Field::NfProto, Op::Eq, value));
            }
        }
        for condition in &rule.matches {
            let choices = self.condition(rule, condition);
            all = all
                .iter()
                .flat_map(|before| {
                    choices
                        .iter()
                        .map(move |choice| before.iter().chain(choice).cloned().collect::<Vec<_>>())
                })
                .collect();
        }
        all
    }

    fn condition(&self, rule: &Compiled, condition: &Condition) -> Vec<Vec<Statement>> {
        let family = rule.family.unwrap_or(IpVersion::V4);
        match condition {
            Condition::Protocol { protocol, negate } => {
                vec![vec![compare(
                    Field::L4Proto,
                    Op::negated(*negate),
                    Value::Proto(protocol.0),
                )]]
            }
            Condition::Icmp {
                kind,
                code,
                negate: false,
            } => icmp(family, *kind, *code, false),
            Condition::Icmp {
                kind,
                code,
                negate: true,
            } => {
                let wanted = rule.matches.iter().find_map(|condition| match condition {
                    Condition::Icmp {
                        kind,
                        code,
                        negate: false,
                    } => Some((*kind, *code)),
                    _ => None,
                });
                match wanted {
                    Some(wanted) => icmp_except(family, wanted, (*kind, *code)),
                    None => icmp(family, *kind, *code, true),
                }
            }
            Condition::Ports { side, ranges, negate } => {
                let of_side = |negated: bool| {
                    rule.matches.iter().find_map(|condition| match condition {
                        Condition::Ports {
                            side: other,
                            ranges,
                            negate,
                        } if other == side && *negate == negated => Some(ranges.as_slice()),
                        _ => None,
                    })
                };
                let field = match side {
                    Side::Source => Field::ThSport,
                    Side::Destination => Field::ThDport,
                };
                // One field is compared once: nft may put two comparisons in another order when it loads its listing.
                match (*negate, of_side(!negate)) {
                    (false, Some(unwanted)) => {
                        let left = ports_except(ranges, unwanted);
                        let left = (!left.is_empty()).then(|| vec![ports(field, &left, false)]);
                        left.into_iter().collect()
                    }
                    (true, Some(_)) => vec![Vec::new()],
                    (negate, None) => vec![vec![ports(field, ranges, negate)]],
                }
            }
            Condition::NamedPort { side, set, negate } => {
                let mut statements = Vec::new();
                let protocol_is_said = rule.matches.iter().any(|condition| {
                    matches!(condition, Condition::Protocol { protocol, negate: false } if protocol.has_ports())
                });
                if *negate && !protocol_is_said {
                    // What has no ports is in no set of ports, and still does not match. Where one protocol is asked
                    // for anyway this would be said twice, in a way that nft lists and does not read.
                    statements.push(Statement::Match(Match::OneOf {
                        field: Field::L4Proto,
                        op: Op::Eq,
                        elements: WITH_PORTS.map(|number| Element::one(Value::Proto(number))).into(),
                    }));
                }
                let port = match side {
                    Side::Source => Field::ThSport,
                    Side::Destination => Field::ThDport,
                };
                statements.push(Statement::Match(Match::InSet {
                    fields: vec![address(family, *side), Field::L4Proto, port],
                    op: Op::negated(*negate),
                    set: set.as_str().to_owned(),
                }));
                vec![statements]
            }
            Condition::Net { side, net, negate } => vec![vec![Statement::Match(Match::Network {
                field: address(
                    if net.is_ipv4() {
                        IpVersion::V4
                    } else {
                        IpVersion::V6
                    },
                    *side,
                ),
                op: Op::negated(*negate),
                network: *net,
            })]],
            Condition::Set { side, set, negate } => vec![vec![Statement::Match(Match::InSet {
                fields: vec![address(
                    self.input
                        .program
                        .sets
                        .get(set)
                        .map_or(family, |found| found.family),
                    *side,
                )],
                op: Op::negated(*negate),
                set: set.as_str().to_owned(),
            })]],
        }
    }
}

fn push(all: &mut [Vec<Statement>], statement: Statement) {
    for list in all {
        list.push(statement.clone());
    }
}

fn compare(field: Field, op: Op, value: Value) -> Statement {
    Statement::Match(Match::Compare { field, op, value })
}

fn address(family: IpVersion, side: Side) -> Field {
    match (family, side) {
        (IpVersion::V4, Side::Source) => Field::IpSaddr,
        (IpVersion::V4, Side::Destination) => Field::IpDaddr,
        (IpVersion::V6, Side::Source) => Field::Ip6Saddr,
        (IpVersion::V6, Side::Destination) => Field::Ip6Daddr,
    }
}

/// "Not type 3 code 4" is "not type 3", or "type 3 and not code 4".
fn icmp(family: IpVersion, kind: u8, code: Option<u8>, negate: bool) -> Vec<Vec<Statement>> {
    let (types, codes) = match family {
        IpVersion::V4 => (Field::IcmpType, Field::IcmpCode),
        IpVersion::V6 => (Field::Icmpv6Type, Field::Icmpv6Code),
    };
    let of_type = |op| compare(types, op, Value::Icmp(kind));
    match (code, negate) {
        (None, negate) => vec![vec![of_type(Op::negated(negate))]],
        (Some(code), false) => vec![vec![of_type(Op::Eq), compare(codes, Op::Eq, Value::Icmp(code))]],
        (Some(code), true) => {
            vec![
                vec![of_type(Op::Ne)],
                vec![of_type(Op::Eq), compare(codes, Op::Ne, Value::Icmp(code))],
            ]
        }
    }
}

/// What is left to ask of a message that is `wanted`, so that it is not `unwanted`. Asking for one type twice would be
/// right too, but `nft` merges such comparisons, and what it lists is not what it loads.
fn icmp_except(
    family: IpVersion,
    wanted: (u8, Option<u8>),
    unwanted: (u8, Option<u8>),
) -> Vec<Vec<Statement>> {
    let codes = match family {
        IpVersion::V4 => Field::IcmpCode,
        IpVersion::V6 => Field::Icmpv6Code,
    };
    match (wanted, unwanted) {
        ((kind, _), (other, _)) if kind != other => vec![Vec::new()],
        (_, (_, None)) => Vec::new(),
        ((_, Some(code)), (_, Some(other))) if code != other => vec![Vec::new()],
        ((_, Some(_)), (_, Some(_))) => Vec::new(),
        ((_, None), (_, Some(code))) => vec![vec![compare(codes, Op::Ne, Value::Icmp(code))]],
    }
}

/// Those of `ranges` that are in none of `unwanted`.
fn ports_except(ranges: &[(u16, u16)], unwanted: &[(u16, u16)]) -> Vec<(u16, u16)> {
    let mut left = ranges.to_vec();
    for (first, last) in unwanted {
        let cut = |(from, to): (u16, u16)| {
            let below = first.checked_sub(1).map(|end| (from, to.min(end)));
            let above = last.checked_add(1).map(|begin| (from.max(begin), to));
            [below, above]
                .into_iter()
                .flatten()
                .filter(|(from, to)| from <= to)
        };
        left = left.into_iter().flat_map(cut).collect();
    }
    left
}

fn ports(field: Field, ranges: &[(u16, u16)], negate: bool) -> Statement {
    let op = Op::negated(negate);
    match ranges {
        [(first, last)] if first == last => compare(field, op, Value::Port(*first)),
        [(first, last)] => Statement::Match(Match::Range {
            field,
            op,
            first: Value::Port(*first),
            last: Value::Port(*last),
        }),
        several => Statement::Match(Match::OneOf {
            field,
            op,
            elements: several
                .iter()
                .map(|(first, last)| Element::range(Value::Port(*first), Value::Port(*last)))
                .collect(),
        }),
    }
}
