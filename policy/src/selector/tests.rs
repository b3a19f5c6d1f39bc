use super::*;
use proptest::prelude::*;

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

fn matches(selector: &str, pairs: &[(&str, &str)]) -> bool {
    Selector::parse(selector)
        .unwrap_or_else(|e| panic!("{selector}: {e}"))
        .matches(&labels(pairs))
}

#[test]
fn every_operator_selects_what_its_name_says() {
    let role_db: &[(&str, &str)] = &[("role", "db"), ("tier", "back-end")];
    // selector, does it match role=db tier=back-end, does it match an object without labels
    let table: &[(&str, bool, bool)] = &[
        ("", true, true),
        (" \t ", true, true),
        ("all()", true, true),
        ("all( )", true, true),
        ("global()", true, true),
        ("role == 'db'", true, false),
        ("role == \"db\"", true, false),
        ("role=='db'", true, false),
        ("role == 'd'", false, false),
        ("role == ''", false, false),
        ("role != 'db'", false, true),
        ("role != 'web'", true, true),
        ("role in {'db', 'web'}", true, false),
        ("role in {'db',}", true, false),
        ("role in {}", false, false),
        ("role in{'db'}", true, false),
        ("role not in {'db'}", false, true),
        ("role notin {'db'}", false, true),
        ("role not \t in {'web'}", true, true),
        ("role not in {}", true, true),
        ("role contains 'd'", true, false),
        ("role contains ''", true, false),
        ("tier contains 'k-e'", true, false),
        ("tier contains'back'", true, false),
        ("tier starts with 'back'", true, false),
        ("tier startswith 'back'", true, false),
        ("tier starts \t with 'end'", false, false),
        ("tier ends with 'end'", true, false),
        ("tier endswith 'end'", true, false),
        ("tier ends with 'back'", false, false),
        ("has(role)", true, false),
        ("has( role )", true, false),
        ("has(owner)", false, false),
        ("!has(role)", false, true),
        ("! has(owner)", true, true),
        ("!!has(role)", true, false),
        ("!! ! has(role)", false, true),
        ("!role == 'db'", false, true),
        ("! role in {'web'}", true, true),
        ("has(role) && has(tier)", true, false),
        ("has(role) && has(owner)", false, false),
        ("has(role)||has(owner)", true, false),
        // && binds tighter than ||, on either side
        ("has(role) || has(owner) && has(owner)", true, false),
        ("has(owner) && has(owner) || has(role)", true, false),
        ("(has(role) || has(owner)) && has(owner)", false, false),
        // ! binds to one operand
        ("!has(owner) && has(role)", true, false),
        ("!(has(owner) && has(role))", true, true),
        ("((role == 'db'))", true, false),
    ];
    for (selector, with_labels, without) in table {
        assert_eq!(matches(selector, role_db), *with_labels, "{selector}");
        assert_eq!(matches(selector, &[]), *without, "{selector} on no labels");
    }
}

#[test]
fn words_are_operators_only_after_a_label() {
    for name in [
        "in", "not", "contains", "starts", "has", "all", "global", "endswith",
    ] {
        assert!(matches(&format!("{name} == 'x'"), &[(name, "x")]), "{name}");
        assert!(matches(&format!("has({name})"), &[(name, "x")]), "{name}");
    }
    assert!(matches("a.b/c-d_e == 'x'", &[("a.b/c-d_e", "x")]));
    assert!(matches("9/-. == 'x'", &[("9/-.", "x")]));
}

#[test]
fn strings_have_no_escapes() {
    assert!(matches(r#"a == '\n'"#, &[("a", "\\n")]));
    assert!(matches(r#"a == "it's""#, &[("a", "it's")]));
    assert!(matches(r#"a == 'say "x"'"#, &[("a", "say \"x\"")]));
    assert!(matches("a == 'zwölf'", &[("a", "zwölf")]));
    assert!(matches("a in {\"'\", '\"'}", &[("a", "\"")]));
}

#[test]
fn what_is_no_selector_is_refused_where_it_goes_wrong() {
    // selector, byte position, a part of the message
    let table: &[(&str, usize, &str)] = &[
        ("role = 'db'", 5, "\"==\""),
        ("role == db", 8, "string in quotes"),
        ("role == ", 8, "the end of the selector"),
        ("role", 4, "operator"),
        ("role role", 5, "expected an operator"),
        ("'db' == role", 0, "label name"),
        ("role contains db", 14, "string in quotes"),
        ("role starts 'db'", 5, "\"with\""),
        ("role ends 'db'", 5, "\"with\""),
        ("role not 'db'", 5, "\"in\""),
        ("role in 'db'", 8, "a set"),
        ("role in {'db'", 13, "\"}\""),
        ("role in {db}", 9, "string in quotes"),
        ("role in {,}", 9, "string in quotes"),
        ("role in {'a' 'b'}", 13, "\",\""),
        ("role == 'db", 8, "no closing '"),
        ("role == \"db'", 8, "no closing \""),
        ("has(role", 8, "\")\""),
        ("has()", 4, "name of a label"),
        ("has (role)", 4, "operator"),
        ("has('role')", 4, "name of a label"),
        ("all(", 4, "\")\""),
        ("all(x)", 4, "\")\""),
        ("global(", 7, "\")\""),
        ("all", 3, "operator"),
        ("(has(a)", 7, "\")\""),
        ("has(a))", 6, "closes nothing"),
        ("()", 1, "label name"),
        ("(", 1, "label name"),
        (")", 0, "label name"),
        ("!", 1, "label name"),
        ("has(a) &", 7, "\"&&\""),
        ("has(a) |", 7, "\"||\""),
        ("has(a) &&", 9, "label name"),
        ("has(a) || ||", 10, "label name"),
        ("has(a) has(b)", 7, "\"&&\""),
        ("has(a) and has(b)", 7, "\"&&\""),
        ("%", 0, "'%'"),
        ("has(a) && %", 10, "'%'"),
        ("a == 'b'\n", 8, "line break"),
        ("a == 'b' &&\r\nhas(c)", 11, "line break"),
        ("ö == 'b'", 0, "'ö'"),
        ("a == 'b' == 'c'", 9, "\"&&\""),
        ("a inx {'b'}", 4, "a set"),
    ];
    for (selector, position, message) in table {
        let error = Selector::parse(selector).expect_err(selector);
        assert_eq!(error.position, *position, "{selector}: {error}");
        assert!(error.message.contains(message), "{selector}: {error}");
        assert!(
            error
                .to_string()
                .ends_with(&format!("(at character {})", position + 1))
        );
    }
}

#[test]
fn label_names_and_nesting_are_bounded() {
    let name = "a".repeat(512);
    assert!(Selector::parse(&format!("{name} == 'x'")).is_ok());
    assert!(Selector::parse(&format!("has({name})")).is_ok());
    assert!(Selector::parse(&format!("{name}a == 'x'")).is_err());
    assert!(Selector::parse(&format!("has({name}a)")).is_err());
    let nested = |depth: usize| format!("{}has(a){}", "(".repeat(depth), ")".repeat(depth));
    assert!(Selector::parse(&nested(128)).is_ok());
    let error = Selector::parse(&nested(100_000)).unwrap_err();
    assert!(error.message.contains("nested"), "{error}");
}

#[test]
fn canonical_forms() {
    let table: &[(&str, &str)] = &[
        ("", "all()"),
        (" all( ) ", "all()"),
        ("( all())", "all()"),
        ("global()", "global()"),
        ("a=='b'", "a == \"b\""),
        ("a!='b'", "a != \"b\""),
        ("a == '\"'", "a == '\"'"),
        ("a == \"'\"", "a == \"'\""),
        ("a startswith 'b'", "a starts with \"b\""),
        ("a endswith 'b'", "a ends with \"b\""),
        ("a contains 'b'", "a contains \"b\""),
        ("a notin {'c','b','c',}", "a not in {\"b\", \"c\"}"),
        ("a in {}", "a in {}"),
        ("a in {'B','a','A','b'}", "a in {\"A\", \"B\", \"a\", \"b\"}"),
        ("a in {'\"',\"'\"}", "a in {'\"', \"'\"}"),
        ("has( a )", "has(a)"),
        ("!!has(a)", "has(a)"),
        ("!!!has(a)", "!has(a)"),
        ("!(!has(a))", "!!has(a)"),
        ("has(a)&&has(b)&&has(c)", "(has(a) && has(b) && has(c))"),
        ("has(a)&&(has(b)&&has(c))", "(has(a) && (has(b) && has(c)))"),
        ("has(a)||has(b)&&has(c)", "(has(a) || (has(b) && has(c)))"),
        ("! (has( b)||! has(a ))", "!(has(b) || !has(a))"),
    ];
    for (text, canonical) in table {
        assert_eq!(Selector::parse(text).unwrap().to_string(), *canonical, "{text}");
    }
}

/// Values that other implementations of this grammar give for the same expressions.
#[test]
fn uids_are_those_of_the_format() {
    let uid = |text| Selector::parse(text).unwrap().uid();
    assert_eq!(uid(""), "s:5y5I3VdRZfDU01O--xXAPx2yxCQQqMf0M6IWug");
    assert_eq!(uid(" (all() )"), "s:5y5I3VdRZfDU01O--xXAPx2yxCQQqMf0M6IWug");
    assert_eq!(
        uid("! (has( b)||! has(a ))"),
        "s:Iss0uCleLYv1GSv_pNm7hAO58kE9jAx1NKyG3Q"
    );
    assert_eq!(
        uid("! (a == \"b\"&&! c != \"d\")"),
        "s:lh3haoY1ikTRkd4UZu0nWSaIBknYLPJLX16d-w"
    );
}

#[test]
fn restrictions_say_what_a_match_needs() {
    let show = |text: &str| {
        let selector = Selector::parse(text).unwrap();
        let mut out = Vec::new();
        for (name, r) in selector.restrictions() {
            let values = r
                .one_of
                .map(|v| format!("{{{}}}", v.into_iter().collect::<Vec<_>>().join(",")));
            let presence = match (r.must_be_present, r.must_be_absent) {
                (true, true) => "contradiction",
                (true, false) => "present",
                (false, true) => "absent",
                (false, false) => "",
            };
            out.push(format!("{name}:{presence}{}", values.unwrap_or_default()));
        }
        out.join(" ")
    };
    assert_eq!(show("all()"), "");
    assert_eq!(show("a == 'b'"), "a:present{b}");
    assert_eq!(show("a != 'b'"), "");
    assert_eq!(show("a not in {'b'}"), "");
    assert_eq!(show("a starts with 'b'"), "a:present");
    assert_eq!(show("!has(a)"), "a:absent");
    assert_eq!(show("!a == 'b'"), "");
    assert_eq!(show("a in {'b','c'} && a in {'c','d'}"), "a:present{c}");
    assert_eq!(show("a == 'b' && a == 'c'"), "a:present{}");
    assert_eq!(show("has(a) && !has(a)"), "a:contradiction");
    assert_eq!(show("a == 'b' || a == 'c'"), "a:present{b,c}");
    assert_eq!(show("a == 'b' || has(a)"), "a:present");
    assert_eq!(show("a == 'b' || has(c)"), "");
    assert_eq!(
        show("(a == 'b' || a == 'c') && has(d)"),
        "a:present{b,c} d:present"
    );
}

#[test]
fn a_prefix_reaches_every_label_of_the_expression() {
    let selector = Selector::parse("!(k == 'v' && has(t) || all()) && a not in {'b'}").unwrap();
    let expected = "(!((ns.k == \"v\" && has(ns.t)) || all()) && ns.a not in {\"b\"})";
    assert_eq!(selector.prefixed("ns.").to_string(), expected);
    assert_eq!(selector.label_names(), BTreeSet::from(["a", "k", "t"]));
}

#[test]
fn conjunction_drops_what_selects_everything() {
    let parse = |text| Selector::parse(text).unwrap();
    assert_eq!(Selector::and([]).to_string(), "all()");
    assert_eq!(Selector::and([parse(""), parse("has(a)")]).to_string(), "has(a)");
    assert_eq!(
        Selector::and([parse("has(b)"), parse("has(a)")]).to_string(),
        "(has(b) && has(a))"
    );
    assert!(parse("has(a) && global()").mentions_global());
    assert!(!parse("has(a) && global()").is_global());
    assert!(parse("global()").is_global());
}

fn name() -> impl Strategy<Value = Box<str>> {
    prop::sample::select(vec!["a", "b", "in", "has", "k8s.io/x-y", "_"]).prop_map(Into::into)
}

fn value() -> impl Strategy<Value = Box<str>> {
    prop::sample::select(vec!["", "a", "ab", "b\"", "c'", "ü x", "all()"]).prop_map(Into::into)
}

fn set() -> impl Strategy<Value = Box<[Box<str>]>> {
    prop::collection::btree_set(value(), 0..4).prop_map(|set| set.into_iter().collect())
}

fn comparison() -> impl Strategy<Value = Comparison> {
    use Comparison::{Contains, EndsWith, Equal, NotEqual, StartsWith};
    prop::sample::select(vec![Equal, NotEqual, Contains, StartsWith, EndsWith])
}

/// Expressions as the parser makes them, but for the negation of a negation, which a text cannot express.
fn expression() -> impl Strategy<Value = Node> {
    let leaf = prop_oneof![
        Just(Node::All),
        Just(Node::Global),
        name().prop_map(Node::Has),
        (name(), comparison(), value()).prop_map(|(n, c, v)| Node::Compare(n, c, v)),
        (name(), set()).prop_map(|(n, s)| Node::In(n, s)),
        (name(), set()).prop_map(|(n, s)| Node::NotIn(n, s)),
    ];
    leaf.prop_recursive(4, 40, 4, |inner| {
        prop_oneof![
            inner.clone().prop_map(|node| match node {
                Node::Not(_) => node,
                other => Node::Not(Box::new(other)),
            }),
            prop::collection::vec(inner.clone(), 2..4).prop_map(Node::And),
            prop::collection::vec(inner, 2..4).prop_map(Node::Or),
        ]
    })
}

fn some_labels() -> impl Strategy<Value = BTreeMap<String, String>> {
    let pair = (name().prop_map(String::from), value().prop_map(String::from));
    prop::collection::vec(pair, 0..5).prop_map(|pairs| pairs.into_iter().collect())
}

/// The meaning of the grammar, said another way: as sets of labels, with strings searched by hand.
fn naive(node: &Node, labels: &BTreeMap<String, String>) -> bool {
    let value = |name: &str| {
        labels
            .iter()
            .find(|(k, _)| k.as_str() == name)
            .map(|(_, v)| v.clone())
    };
    match node {
        Node::All | Node::Global => true,
        Node::Has(name) => labels.keys().any(|k| k == &**name),
        Node::Compare(name, comparison, wanted) => {
            let windows = |v: &str| {
                let ends = v.char_indices().map(|(i, _)| i).chain([v.len()]);
                ends.filter(|i| {
                    v[*i..].len() >= wanted.len() && v.as_bytes()[*i..][..wanted.len()] == *wanted.as_bytes()
                })
                .collect::<Vec<_>>()
            };
            match (value(name), comparison) {
                (None, c) => *c == Comparison::NotEqual,
                (Some(v), Comparison::Equal) => v == **wanted,
                (Some(v), Comparison::NotEqual) => v != **wanted,
                (Some(v), Comparison::Contains) => !windows(&v).is_empty(),
                (Some(v), Comparison::StartsWith) => windows(&v).contains(&0),
                (Some(v), Comparison::EndsWith) => windows(&v).iter().any(|i| i + wanted.len() == v.len()),
            }
        }
        Node::In(name, set) => set.iter().any(|m| value(name).as_deref() == Some(m)),
        Node::NotIn(name, set) => set.iter().all(|m| value(name).as_deref() != Some(m)),
        Node::Not(operand) => !naive(operand, labels),
        Node::And(operands) => operands.iter().filter(|o| naive(o, labels)).count() == operands.len(),
        Node::Or(operands) => operands.iter().filter(|o| naive(o, labels)).count() > 0,
    }
}

proptest! {
    #[test]
    fn the_canonical_form_parses_to_the_same_selector(node in expression()) {
        let selector = Selector(node);
        let again = Selector::parse(&selector.to_string());
        prop_assert_eq!(again, Ok(selector));
    }

    #[test]
    fn evaluation_agrees_with_the_naive_one(node in expression(), labels in some_labels()) {
        prop_assert_eq!(node.matches(&labels), naive(&node, &labels));
    }

    #[test]
    fn restrictions_never_exclude_a_match(node in expression(), labels in some_labels()) {
        if node.matches(&labels) {
            for (name, r) in Selector(node).restrictions() {
                let value = labels.get(name).map(String::as_str);
                prop_assert!(!r.must_be_present || value.is_some());
                prop_assert!(!r.must_be_absent || value.is_none());
                prop_assert!(r.one_of.is_none_or(|set| value.is_some_and(|v| set.contains(v))));
            }
        }
    }

    #[test]
    fn any_text_is_parsed_or_refused_inside_its_bounds(text in "[ab!&|=(){}'\", \\t\\n<ü-]{0,24}|(has\\(|all\\(\\)|a in \\{|'x'|&&|!| ){0,8}") {
        match Selector::parse(&text) {
            Ok(selector) => {
                let again = Selector::parse(&selector.to_string());
                prop_assert!(again.is_ok(), "{selector}");
            }
            Err(error) => prop_assert!(text.is_char_boundary(error.position), "{error:?}"),
        }
    }
}
