//! A YAML (or JSON: YAML 1.2 contains it) document as a tree in which every key and value knows its place.
//!
//! The parser below this is an event stream; the tree is built with an explicit stack, with bounds on depth, on
//! the number of values and on what aliases may expand to, so that no document can take more than its share.

use std::collections::BTreeMap;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle};
use serde_json::{Map, Number, Value};

use crate::path::{Path, Step};

/// Deepest nesting of lists and objects.
const MAX_DEPTH: usize = 64;
/// Most values in one document, where nothing else is said.
const MAX_VALUES: usize = 1_000_000;
/// The merge key.
const MERGE: &str = "<<";

/// A place in the text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
}

/// A value and its place.
#[derive(Clone, Debug)]
pub struct Node {
    /// Where it begins; for what an alias stands for, where its anchor is.
    pub at: Position,
    /// Characters between `at` and the first character of a scalar's text (an opening quote), or `None` where
    /// text and place do not run in parallel (block scalars).
    pub text_offset: Option<u32>,
    /// The value.
    pub data: Data,
}

/// What a value can be.
#[derive(Clone, Debug)]
pub enum Data {
    /// Nothing, `~` or `null`.
    Null,
    /// A truth value, with the text it was written as.
    Bool(bool, String),
    /// A number, with the text it was written as.
    Number(Number, String),
    /// Any other scalar.
    Text(String),
    /// Items in the order of the text.
    List(Vec<Node>),
    /// Members in the order of the text; keys are unique.
    Object(Vec<Member>),
}

/// One member of an object.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its name.
    pub key: String,
    /// Where the name stands.
    pub key_at: Position,
    /// What it holds.
    pub value: Node,
}

/// Why a text is not a document, and where.
#[derive(Clone, Debug)]
pub struct TreeError {
    /// Where.
    pub at: Position,
    /// Why.
    pub message: String,
}

/// What may differ from text to text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Number of the text's first line, for texts that are a part of a file.
    pub first_line: u32,
    /// Whether `<<` takes over the members of other objects (the merge key of YAML 1.1, which 1.2 has no more). What
    /// the object says itself wins, and of several sources the earlier one. Without it `<<` is an error.
    pub merge_keys: bool,
    /// Most values in the document, those that aliases repeat included.
    pub max_values: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            first_line: 1,
            merge_keys: false,
            max_values: MAX_VALUES,
        }
    }
}

impl Node {
    /// The member `key` of an object.
    pub fn get(&self, key: &str) -> Option<&Self> {
        match &self.data {
            Data::Object(members) => members.iter().find(|m| m.key == key).map(|m| &m.value),
            _ => None,
        }
    }

    /// The text of a string; a number or a boolean is none.
    pub fn text(&self) -> Option<&str> {
        match &self.data {
            Data::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A scalar as it was written, whatever it looks like; nothing, lists and objects have no such text.
    pub fn scalar(&self) -> Option<&str> {
        match &self.data {
            Data::Bool(_, text) | Data::Number(_, text) | Data::Text(text) => Some(text),
            Data::Null | Data::List(_) | Data::Object(_) => None,
        }
    }

    /// What a value of this sort is called.
    pub fn describe(&self) -> &'static str {
        match &self.data {
            Data::Null => "nothing",
            Data::Bool(..) => "a boolean",
            Data::Number(..) => "a number",
            Data::Text(_) => "a string",
            Data::List(_) => "a list",
            Data::Object(_) => "an object",
        }
    }

    /// The same value without its places.
    pub fn to_json(&self) -> Value {
        match &self.data {
            Data::Null => Value::Null,
            Data::Bool(b, _) => Value::Bool(*b),
            Data::Number(number, _) => Value::Number(number.clone()),
            Data::Text(text) => Value::String(text.clone()),
            Data::List(items) => Value::Array(items.iter().map(Self::to_json).collect()),
            Data::Object(members) => {
                let object: Map<String, Value> = members
                    .iter()
                    .map(|m| (m.key.clone(), m.value.to_json()))
                    .collect();
                Value::Object(object)
            }
        }
    }

    /// The place of what `path` leads to, or of the deepest part of it that exists.
    pub fn locate(&self, path: &Path) -> &Self {
        let mut node = self;
        for step in path.steps() {
            let next = match (step, &node.data) {
                (Step::Key(key), Data::Object(_)) => node.get(key),
                (Step::Index(index), Data::List(items)) => items.get(*index),
                _ => None,
            };
            match next {
                Some(next) => node = next,
                None => break,
            }
        }
        node
    }
}

/// Parses the one document that `text` holds; `None` if it is empty. Duplicate keys are collected into `errors` and the
/// first of them kept.
///
/// # Errors
/// Anything else that is wrong ends the document: bad YAML, a tag, an alias without its anchor, a second document, more
/// values or deeper nesting than the bounds allow.
pub fn parse(text: &str, options: Options, errors: &mut Vec<TreeError>) -> Result<Option<Node>, TreeError> {
    let mut builder = Builder {
        options,
        open: Vec::new(),
        root: None,
        anchors: BTreeMap::new(),
        values: 0,
        errors,
    };
    let mut parser = Parser::new_from_str(text);
    while let Some(event) = parser.next_event() {
        let (event, span) = event.map_err(|e| TreeError {
            at: builder.position(e.marker()),
            message: format!("this is not YAML: {}", e.info()),
        })?;
        let at = builder.position(&span.start);
        builder.event(event, at)?;
    }
    Ok(builder.root)
}

/// A list or an object that is being filled.
struct Open {
    node: Node,
    anchor: usize,
    /// The key whose value comes next.
    key: Option<(String, Position)>,
    /// Values of merge keys.
    merges: Vec<Node>,
}

struct Builder<'e> {
    options: Options,
    open: Vec<Open>,
    root: Option<Node>,
    anchors: BTreeMap<usize, Node>,
    values: usize,
    errors: &'e mut Vec<TreeError>,
}

impl Builder<'_> {
    fn position(&self, marker: &Marker) -> Position {
        let line = u32::try_from(marker.line().max(1)).unwrap_or(u32::MAX);
        let column = u32::try_from(marker.col() + 1).unwrap_or(u32::MAX);
        Position {
            line: line.saturating_add(self.options.first_line.saturating_sub(1)),
            column,
        }
    }

    fn event(&mut self, event: Event<'_>, at: Position) -> Result<(), TreeError> {
        let error = |message: String| Err(TreeError { at, message });
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let forced_text = match tag.as_deref() {
                    None => style != ScalarStyle::Plain,
                    Some(tag) if tag.is_yaml_core_schema() && tag.suffix == "str" => true,
                    Some(tag) => return error(format!("the tag !{} means nothing here", tag.suffix)),
                };
                let text_offset = match style {
                    ScalarStyle::Plain => Some(0),
                    ScalarStyle::SingleQuoted | ScalarStyle::DoubleQuoted => Some(1),
                    ScalarStyle::Literal | ScalarStyle::Folded => None,
                };
                let data = if forced_text {
                    Data::Text(text.into_owned())
                } else {
                    plain(&text)
                };
                self.value(
                    Node {
                        at,
                        text_offset,
                        data,
                    },
                    anchor,
                )
            }
            Event::SequenceStart(_, Some(_)) | Event::MappingStart(_, Some(_)) => {
                error("tags mean nothing here".to_owned())
            }
            Event::SequenceStart(anchor, _) => self.begin(Data::List(Vec::new()), anchor, at),
            Event::MappingStart(anchor, _) => self.begin(Data::Object(Vec::new()), anchor, at),
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(open) => {
                    let node = merged(open.node, open.merges)?;
                    self.attach(node, open.anchor)
                }
                None => Ok(()),
            },
            Event::Alias(anchor) => match self.anchors.get(&anchor) {
                Some(node) => {
                    let node = node.clone();
                    self.count(size(&node), at)?;
                    if self.open.len() + depth(&node) > MAX_DEPTH {
                        return error(format!("values are nested more than {MAX_DEPTH} deep"));
                    }
                    self.attach(node, 0)
                }
                None => error("this alias refers to a value that contains it".to_owned()),
            },
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd => Ok(()),
        }
    }

    fn count(&mut self, values: usize, at: Position) -> Result<(), TreeError> {
        self.values += values;
        if self.values > self.options.max_values {
            let message = format!("the document has more than {} values", self.options.max_values);
            return Err(TreeError { at, message });
        }
        Ok(())
    }

    fn begin(&mut self, data: Data, anchor: usize, at: Position) -> Result<(), TreeError> {
        if self.open.len() >= MAX_DEPTH {
            let message = format!("values are nested more than {MAX_DEPTH} deep");
            return Err(TreeError { at, message });
        }
        self.count(1, at)?;
        self.open.push(Open {
            node: Node {
                at,
                text_offset: None,
                data,
            },
            anchor,
            key: None,
            merges: Vec::new(),
        });
        Ok(())
    }

    fn value(&mut self, node: Node, anchor: usize) -> Result<(), TreeError> {
        self.count(1, node.at)?;
        self.attach(node, anchor)
    }

    /// Puts a finished value where it belongs.
    fn attach(&mut self, node: Node, anchor: usize) -> Result<(), TreeError> {
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        let Some(parent) = self.open.last_mut() else {
            if self.root.is_none() {
                self.root = Some(node);
            } else if !matches!(node.data, Data::Null) {
                let message = "this is a second document where one is expected".to_owned();
                return Err(TreeError { at: node.at, message });
            }
            return Ok(());
        };
        match &mut parent.node.data {
            Data::List(items) => items.push(node),
            Data::Object(members) => match parent.key.take() {
                None => {
                    let at = node.at;
                    let key = match node.data {
                        Data::Text(text) | Data::Number(_, text) => text,
                        Data::Bool(b, _) => b.to_string(),
                        Data::Null => "null".to_owned(),
                        Data::List(_) | Data::Object(_) => {
                            let message = "a key must be a string".to_owned();
                            return Err(TreeError { at, message });
                        }
                    };
                    if key == MERGE && !self.options.merge_keys {
                        let message =
                            "merge keys (<<) are not part of YAML 1.2; write the fields out".to_owned();
                        return Err(TreeError { at, message });
                    }
                    parent.key = Some((key, at));
                }
                Some((key, _)) if key == MERGE => parent.merges.push(node),
                Some((key, key_at)) => {
                    if let Some(first) = members.iter().find(|m| m.key == key) {
                        let message = format!(
                            "{key:?} is here a second time; the first is in line {}",
                            first.key_at.line
                        );
                        self.errors.push(TreeError { at: key_at, message });
                    } else {
                        members.push(Member {
                            key,
                            key_at,
                            value: node,
                        });
                    }
                }
            },
            _ => {}
        }
        Ok(())
    }
}

/// `node` with the members of `merges` that it does not have itself.
fn merged(mut node: Node, merges: Vec<Node>) -> Result<Node, TreeError> {
    let Data::Object(own) = &mut node.data else {
        return Ok(node);
    };
    for merge in merges {
        let sources = match merge.data {
            Data::List(items) => items,
            _ => vec![merge],
        };
        for source in sources {
            let Data::Object(members) = source.data else {
                let message = format!("<< takes over objects, not {}", source.describe());
                return Err(TreeError {
                    at: source.at,
                    message,
                });
            };
            for member in members {
                if !own.iter().any(|known| known.key == member.key) {
                    own.push(member);
                }
            }
        }
    }
    Ok(node)
}

fn size(node: &Node) -> usize {
    1 + match &node.data {
        Data::List(items) => items.iter().map(size).sum(),
        Data::Object(members) => members.iter().map(|m| size(&m.value)).sum(),
        _ => 0,
    }
}

fn depth(node: &Node) -> usize {
    match &node.data {
        Data::List(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Data::Object(members) => 1 + members.iter().map(|m| depth(&m.value)).max().unwrap_or(0),
        _ => 0,
    }
}

/// What an unquoted scalar means (YAML 1.2 core schema, §10.3.2).
fn plain(text: &str) -> Data {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Data::Null,
        "true" | "True" | "TRUE" => return Data::Bool(true, text.to_owned()),
        "false" | "False" | "FALSE" => return Data::Bool(false, text.to_owned()),
        _ => {}
    }
    match number(text) {
        Some(number) => Data::Number(number, text.to_owned()),
        None => Data::Text(text.to_owned()),
    }
}

fn number(text: &str) -> Option<Number> {
    if let Some(digits) = text.strip_prefix("0x") {
        return u64::from_str_radix(digits, 16)
            .ok()
            .filter(|_| !digits.starts_with('+'))
            .map(Number::from);
    }
    if let Some(digits) = text.strip_prefix("0o") {
        return u64::from_str_radix(digits, 8)
            .ok()
            .filter(|_| !digits.starts_with('+'))
            .map(Number::from);
    }
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    if !unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return None;
    }
    if unsigned.bytes().all(|b| b.is_ascii_digit()) {
        let signless = text.strip_prefix('+').unwrap_or(text);
        return match signless.parse::<i64>() {
            Ok(n) => Some(n.into()),
            Err(_) => signless
                .parse::<u64>()
                .ok()
                .map(Number::from)
                .or_else(|| float(signless)),
        };
    }
    float(text)
}

fn float(text: &str) -> Option<Number> {
    let in_number = |b: u8| b.is_ascii_digit() || matches!(b, b'+' | b'-' | b'.' | b'e' | b'E');
    if !text.bytes().all(in_number) || !text.bytes().any(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse::<f64>().ok().and_then(Number::from_f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> Value {
        let mut errors = Vec::new();
        let node = parse(text, Options::default(), &mut errors).unwrap().unwrap();
        assert!(errors.is_empty(), "{errors:?}");
        node.to_json()
    }

    #[test]
    fn scalars_are_those_of_yaml_1_2() {
        let read = json(
            "[yes, no, on, ~, null, true, False, 010, 0o10, 0x1F, 1e3, .5, -7, +7, 1.2.3, 1:2, '1', \"true\", !!str 5, 10.0.0.0/8]",
        );
        let expected = serde_json::json!([
            "yes",
            "no",
            "on",
            null,
            null,
            true,
            false,
            10,
            8,
            31,
            1000.0,
            0.5,
            -7,
            7,
            "1.2.3",
            "1:2",
            "1",
            "true",
            "5",
            "10.0.0.0/8"
        ]);
        assert_eq!(read, expected);
    }

    #[test]
    fn json_is_read_as_it_stands() {
        let text = "{\n\t\"a\": [1, 2.5, null, true],\n\t\"b\": {\"c\": \"x\\ny\"}, \"e\":[]}\n";
        assert_eq!(json(text), serde_json::from_str::<Value>(text).unwrap());
    }

    #[test]
    fn every_value_knows_its_place() {
        let mut errors = Vec::new();
        let options = Options {
            first_line: 10,
            ..Options::default()
        };
        let node = parse("a:\n  - b: 1\n    c: 'x'\n", options, &mut errors)
            .unwrap()
            .unwrap();
        let c = node.locate(&Path::root().key("a").index(0).key("c"));
        assert_eq!((c.at, c.text_offset), (Position { line: 12, column: 8 }, Some(1)));
        let missing = node.locate(&Path::root().key("a").index(0).key("zzz").key("y"));
        assert_eq!(missing.at, Position { line: 11, column: 5 });
    }

    #[test]
    fn a_key_may_stand_once() {
        let mut errors = Vec::new();
        let node = parse("a: 1\nb: 2\na: 3\n", Options::default(), &mut errors)
            .unwrap()
            .unwrap();
        assert_eq!(node.to_json(), serde_json::json!({"a": 1, "b": 2}));
        assert_eq!(errors.len(), 1);
        assert_eq!(errors[0].at, Position { line: 3, column: 1 });
    }

    #[test]
    fn one_document_is_one_document() {
        let read = |text: &str| parse(text, Options::default(), &mut Vec::new());
        assert!(read("").unwrap().is_none());
        assert_eq!(
            read("---\na: 1\n---\n").unwrap().unwrap().to_json(),
            serde_json::json!({"a": 1})
        );
        let error = read("a: 1\n---\nb: 2\n").unwrap_err();
        assert_eq!(error.at, Position { line: 3, column: 1 });
        assert!(read("{a: 1} b").is_err());
    }

    #[test]
    fn merge_keys_fill_in_what_the_object_does_not_say() {
        let options = Options {
            merge_keys: true,
            ..Options::default()
        };
        let read = |text: &str| parse(text, options, &mut Vec::new());
        let node =
            read("x: &x {a: 1, b: 2}\ny: &y {b: 3, c: 4}\nz:\n  a: 0\n  <<: [*x, *y]\n  d: 5\nw: {<<: *x}\n");
        let json = node.unwrap().unwrap().to_json();
        assert_eq!(json["z"], serde_json::json!({"a": 0, "d": 5, "b": 2, "c": 4}));
        assert_eq!(json["w"], json["x"]);
        let error = read("a:\n  <<: 5\n").unwrap_err();
        assert_eq!(error.at, Position { line: 2, column: 7 });
        let error = parse("a: {<<: {b: 1}}", Options::default(), &mut Vec::new()).unwrap_err();
        assert!(error.message.contains("merge keys"), "{}", error.message);
    }

    #[test]
    fn aliases_repeat_values_within_bounds() {
        assert_eq!(
            json("a: &x [1, 2]\nb: *x\n"),
            serde_json::json!({"a": [1, 2], "b": [1, 2]})
        );
        // Each line is ten times the one before: a billion values if nobody counts.
        let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for i in 1..9 {
            let refs = vec![format!("*a{}", i - 1); 10].join(", ");
            bomb.push_str(&format!("a{i}: &a{i} [{refs}]\n"));
        }
        let error = parse(&bomb, Options::default(), &mut Vec::new()).unwrap_err();
        assert!(
            error.message.contains("more than 1000000 values"),
            "{}",
            error.message
        );
        let deep = format!("{}{}", "[".repeat(100), "]".repeat(100));
        let error = parse(&deep, Options::default(), &mut Vec::new()).unwrap_err();
        assert!(error.message.contains("nested"), "{}", error.message);
    }
}
