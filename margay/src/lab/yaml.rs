//! A YAML document as a tree that remembers where everything stood.
//!
//! A topology file is written by hand, so every complaint has to name the line and column of the word it is about.
//! Deserialisers give that away; this tree keeps it. Anchors, aliases and merge keys (`<<`) are resolved here, within
//! a bound, so that a few lines of aliases to aliases cannot eat the memory.

use std::collections::HashMap;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle};

use super::Diagnostic;

/// Nodes that one document may have after its aliases are resolved.
const MAX_NODES: usize = 100_000;

/// Nesting that one document may have. The reader recurses, so this also bounds its stack.
const MAX_DEPTH: usize = 64;

/// A value and where it begins.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Yaml {
    pub(super) value: Value,
    /// Line, from 1.
    pub(super) line: usize,
    /// Column in characters, from 1.
    pub(super) column: usize,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Null,
    /// `plain` is true for a scalar without quotes, the only kind that may be a number or a boolean.
    Scalar {
        text: String,
        plain: bool,
    },
    List(Vec<Yaml>),
    /// In the order of the file; a key stands once.
    Map(Vec<(Key, Yaml)>),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Key {
    pub(super) text: String,
    pub(super) line: usize,
    pub(super) column: usize,
}

/// Reads the first document of `text`; an empty file is [`Value::Null`].
///
/// # Errors
/// Bad YAML, a key that stands twice, an unknown alias, or a document beyond the bounds.
pub(super) fn parse(file: &str, text: &str) -> Result<Yaml, Diagnostic> {
    let mut builder = Builder {
        file,
        ..Builder::default()
    };
    for event in Parser::new_from_str(text) {
        let (event, span) =
            event.map_err(|error| at(file, error.marker(), &format!("not valid YAML: {}", error.info())))?;
        if builder.event(event, &span.start)? {
            break;
        }
    }
    Ok(builder.root.unwrap_or(Yaml {
        value: Value::Null,
        line: 1,
        column: 1,
    }))
}

/// A collection that is still open, with the key that waits for its value.
enum Open {
    List {
        items: Vec<Yaml>,
        start: (usize, usize),
        anchor: usize,
    },
    Map {
        entries: Vec<(Key, Yaml)>,
        key: Option<Key>,
        start: (usize, usize),
        anchor: usize,
    },
}

#[derive(Default)]
struct Builder<'a> {
    file: &'a str,
    open: Vec<Open>,
    /// Anchored values with their size in nodes.
    anchors: HashMap<usize, (Yaml, usize)>,
    nodes: usize,
    root: Option<Yaml>,
}

impl Builder<'_> {
    /// Takes one event; true when the document is complete.
    fn event(&mut self, event: Event<'_>, start: &Marker) -> Result<bool, Diagnostic> {
        let place = (start.line(), start.col() + 1);
        match event {
            Event::Scalar(text, style, anchor, _) => {
                let plain = style == ScalarStyle::Plain;
                let value = match &*text {
                    "" | "~" | "null" if plain => Value::Null,
                    _ => Value::Scalar {
                        text: text.into_owned(),
                        plain,
                    },
                };
                self.add(
                    Yaml {
                        value,
                        line: place.0,
                        column: place.1,
                    },
                    anchor,
                    start,
                )?;
            }
            Event::SequenceStart(anchor, _) => {
                self.enter(
                    Open::List {
                        items: Vec::new(),
                        start: place,
                        anchor,
                    },
                    start,
                )?;
            }
            Event::MappingStart(anchor, _) => {
                self.enter(
                    Open::Map {
                        entries: Vec::new(),
                        key: None,
                        start: place,
                        anchor,
                    },
                    start,
                )?;
            }
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(Open::List {
                    items,
                    start: (line, column),
                    anchor,
                }) => {
                    self.add(
                        Yaml {
                            value: Value::List(items),
                            line,
                            column,
                        },
                        anchor,
                        start,
                    )?;
                }
                Some(Open::Map {
                    entries,
                    start: (line, column),
                    anchor,
                    ..
                }) => {
                    let value = Value::Map(merged(entries));
                    self.add(Yaml { value, line, column }, anchor, start)?;
                }
                None => return Err(at(self.file, start, "a collection ends that was never opened")),
            },
            Event::Alias(anchor) => {
                let Some((mut value, size)) = self.anchors.get(&anchor).cloned() else {
                    return Err(at(self.file, start, "this alias has no anchor before it"));
                };
                self.nodes += size;
                (value.line, value.column) = place;
                self.add(value, 0, start)?;
            }
            Event::DocumentEnd => return Ok(true),
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) => {}
        }
        Ok(false)
    }

    fn enter(&mut self, open: Open, start: &Marker) -> Result<(), Diagnostic> {
        if self.open.len() >= MAX_DEPTH {
            return Err(at(self.file, start, "nested too deeply"));
        }
        self.open.push(open);
        Ok(())
    }

    fn add(&mut self, value: Yaml, anchor: usize, start: &Marker) -> Result<(), Diagnostic> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err(at(
                self.file,
                start,
                "the document is too large once its aliases are resolved",
            ));
        }
        if anchor != 0 {
            let size = value.size();
            self.anchors.insert(anchor, (value.clone(), size));
        }
        match self.open.last_mut() {
            None => self.root = Some(value),
            Some(Open::List { items, .. }) => items.push(value),
            Some(Open::Map { entries, key, .. }) => match key.take() {
                Some(key) => entries.push((key, value)),
                None => {
                    let text = match value.value {
                        Value::Scalar { text, .. } => text,
                        Value::Null => "null".to_owned(),
                        Value::List(_) | Value::Map(_) => {
                            return Err(at(self.file, start, "a key has to be a word, not a collection"));
                        }
                    };
                    if text != "<<" && entries.iter().any(|(known, _)| known.text == text) {
                        return Err(at(
                            self.file,
                            start,
                            &format!("the key '{text}' stands here twice"),
                        ));
                    }
                    *key = Some(Key {
                        text,
                        line: value.line,
                        column: value.column,
                    });
                }
            },
        }
        Ok(())
    }
}

impl Yaml {
    fn size(&self) -> usize {
        1 + match &self.value {
            Value::Null | Value::Scalar { .. } => 0,
            Value::List(items) => items.iter().map(Yaml::size).sum(),
            Value::Map(entries) => entries.iter().map(|(_, value)| value.size()).sum(),
        }
    }

    /// What this is, for a sentence that says what was found.
    pub(super) fn what(&self) -> &'static str {
        match &self.value {
            Value::Null => "nothing",
            Value::Scalar { .. } => "a plain value",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }
}

/// Folds merge keys in: what the mapping says itself wins over what it merges (YAML 1.1, `<<`).
fn merged(entries: Vec<(Key, Yaml)>) -> Vec<(Key, Yaml)> {
    if !entries.iter().any(|(key, _)| key.text == "<<") {
        return entries;
    }
    let (merges, mut own): (Vec<_>, Vec<_>) = entries.into_iter().partition(|(key, _)| key.text == "<<");
    for (_, merge) in merges {
        let sources = match merge.value {
            Value::List(items) => items,
            other => vec![Yaml {
                value: other,
                line: merge.line,
                column: merge.column,
            }],
        };
        for source in sources {
            let Value::Map(more) = source.value else { continue };
            for (key, value) in more {
                if !own.iter().any(|(known, _)| known.text == key.text) {
                    own.push((key, value));
                }
            }
        }
    }
    own
}

fn at(file: &str, marker: &Marker, message: &str) -> Diagnostic {
    Diagnostic {
        file: file.to_owned(),
        line: marker.line(),
        column: marker.col() + 1,
        field: String::new(),
        message: message.to_owned(),
        hint: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_knows_where_it_stood() {
        let tree = parse("t", "name: demo\ntopology:\n  nodes: [a, 'b']\n").unwrap();
        let Value::Map(top) = &tree.value else {
            panic!("{tree:?}")
        };
        assert_eq!(
            (top[0].0.line, top[0].0.column, top[0].1.line, top[0].1.column),
            (1, 1, 1, 7)
        );
        let Value::Map(topology) = &top[1].1.value else {
            panic!("{tree:?}")
        };
        let Value::List(nodes) = &topology[0].1.value else {
            panic!("{tree:?}")
        };
        assert_eq!((nodes[1].line, nodes[1].column), (3, 14));
        assert_eq!(
            nodes[0].value,
            Value::Scalar {
                text: "a".into(),
                plain: true
            }
        );
        assert_eq!(
            nodes[1].value,
            Value::Scalar {
                text: "b".into(),
                plain: false
            }
        );
    }

    #[test]
    fn merge_keys_fill_in_what_the_mapping_does_not_say() {
        let tree = parse("t", "base: &b {x: 1, y: 2}\nuse:\n  <<: *b\n  y: 3\n").unwrap();
        let Value::Map(top) = &tree.value else {
            panic!("{tree:?}")
        };
        let Value::Map(used) = &top[1].1.value else {
            panic!("{tree:?}")
        };
        let pairs: Vec<_> = used
            .iter()
            .map(|(k, v)| (k.text.as_str(), v.value.clone()))
            .collect();
        let scalar = |text: &str| Value::Scalar {
            text: text.into(),
            plain: true,
        };
        assert_eq!(pairs, [("y", scalar("3")), ("x", scalar("1"))]);
    }

    #[test]
    fn a_key_twice_is_an_error_at_the_second_one() {
        let error = parse("t", "a: 1\nb: 2\na: 3\n").unwrap_err();
        assert_eq!((error.line, error.column), (3, 1));
        assert!(error.message.contains("twice"), "{}", error.message);
    }

    #[test]
    fn aliases_of_aliases_are_bounded() {
        let mut text = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for level in 1..9 {
            let before = format!("*a{}", level - 1);
            text.push_str(&format!("a{level}: &a{level} [{}]\n", vec![before; 10].join(",")));
        }
        assert!(parse("t", &text).unwrap_err().message.contains("too large"));
    }

    #[test]
    fn deep_nesting_is_refused() {
        let text = format!("{}{}", "[".repeat(200), "]".repeat(200));
        assert!(parse("t", &text).is_err());
    }
}
