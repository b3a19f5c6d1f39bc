//! A document beside its shape: everything that does not fit, each with its place.

use crate::nearest::nearest;
use crate::path::Path;
use crate::resource::shape::{ObjectShape, Shape};
use crate::tree::{Data, Node, Position};

/// Something that does not fit.
pub(crate) struct Misfit {
    pub(crate) at: Position,
    pub(crate) path: Path,
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
}

/// Collects what in `node` does not fit `shape`. Names of fields that are accepted without having an effect go to
/// `not_honoured`.
pub(crate) fn check(node: &Node, shape: Shape, path: &Path, found: &mut Found) {
    match (shape, &node.data) {
        // Nothing is the same as leaving the field out, as everywhere in this API.
        (_, Data::Null) | (Shape::Any, _) | (Shape::Bool, Data::Bool(..)) => {}
        (Shape::Number, Data::Number(number, text)) => {
            if number.as_f64().is_none_or(|v| !v.is_finite()) {
                found.misfit(node.at, path, format!("{text} is not a finite number"), None);
            }
        }
        (Shape::Integer { min, max }, Data::Number(number, text)) => {
            let fits = number.as_i64().is_some_and(|v| (min..=max).contains(&v));
            if !fits {
                let message = format!("{text} is not a whole number from {min} to {max}");
                found.misfit(node.at, path, message, None);
            }
        }
        (Shape::Text { check, .. } | Shape::TextOrInteger { check, .. }, Data::Text(text)) => {
            if let Err(reason) = check(text) {
                found.misfit(node.at, path, reason, None);
            }
        }
        (Shape::TextOrInteger { what, .. }, Data::Number(number, text)) if !number.is_u64() => {
            let hint = Some(format!("write \"{text}\", in quotes"));
            found.misfit(node.at, path, format!("{text} is not {what}"), hint);
        }
        (Shape::TextOrInteger { check, .. }, Data::Number(_, text)) => {
            if let Err(reason) = check(text) {
                found.misfit(node.at, path, reason, None);
            }
        }
        (Shape::Enum(values), Data::Text(text)) => {
            if !values.contains(&text.as_str()) {
                let near = nearest(text, values.iter().map(|v| (*v, *v)));
                let hint = near.first().map(|v| format!("did you mean {v}?"));
                let message = format!("{text:?} is not one of {}", values.join(", "));
                found.misfit(node.at, path, message, hint);
            }
        }
        (Shape::List(element), Data::List(items)) => {
            for (i, item) in items.iter().enumerate() {
                let path = path.index(i);
                if matches!(item.data, Data::Null) {
                    found.misfit(item.at, &path, "an element of a list cannot be nothing", None);
                } else {
                    check(item, element(), &path, found);
                }
            }
        }
        (Shape::Map(value), Data::Object(members)) => {
            for member in members {
                let path = path.key(&member.key);
                if matches!(member.value.data, Data::Null) {
                    found.misfit(
                        member.key_at,
                        &path,
                        "the value is missing",
                        Some("write \"\" for an empty one".into()),
                    );
                } else {
                    check(&member.value, value(), &path, found);
                }
            }
        }
        (Shape::Object(shape), Data::Object(_)) => object(node, shape, false, path, found),
        (Shape::Open(shape), Data::Object(_)) => object(node, shape, true, path, found),
        (shape, data) => {
            let expected = expected(shape);
            let hint = match (shape, data) {
                (Shape::Text { .. } | Shape::Enum(_), Data::Number(_, text)) => {
                    Some(format!("write \"{text}\", in quotes"))
                }
                (Shape::Text { .. } | Shape::Enum(_), Data::Bool(b, _)) => {
                    Some(format!("write \"{b}\", in quotes"))
                }
                (Shape::Bool, Data::Text(text)) if matches!(text.as_str(), "yes" | "on" | "Yes" | "On") => {
                    Some("write true".to_owned())
                }
                (Shape::Bool, Data::Text(text)) if matches!(text.as_str(), "no" | "off" | "No" | "Off") => {
                    Some("write false".to_owned())
                }
                (Shape::List(_), _) => {
                    Some("write it as a list: [ … ], or a line with \"- \" for each element".to_owned())
                }
                (Shape::Bool, Data::Text(text)) if matches!(text.as_str(), "true" | "false") => {
                    Some("write it without quotes".to_owned())
                }
                (Shape::Number, Data::Text(text)) if text.to_ascii_lowercase().ends_with(".inf") => {
                    Some("the number must be finite; to come last, leave the field out".to_owned())
                }
                (Shape::Integer { .. } | Shape::Number, Data::Text(text)) if text.parse::<f64>().is_ok() => {
                    Some("write it without quotes".to_owned())
                }
                _ => None,
            };
            found.misfit(
                node.at,
                path,
                format!("expected {expected}, found {}", node.describe()),
                hint,
            );
        }
    }
}

fn object(node: &Node, shape: &ObjectShape, open: bool, path: &Path, found: &mut Found) {
    let Data::Object(members) = &node.data else { return };
    for member in members {
        let path = path.key(&member.key);
        let without_effect = shape.not_honoured.contains(&member.key.as_str());
        if without_effect {
            found.not_honoured.push((member.key_at, path.clone()));
        }
        if let Some(field) = shape.field(&member.key) {
            if field.required && matches!(member.value.data, Data::Null) {
                found.misfit(member.key_at, &path, "the value is missing", None);
            } else {
                check(&member.value, (field.shape)(), &path, found);
            }
        } else if !without_effect {
            let known = shape
                .fields
                .iter()
                .map(|f| f.name)
                .chain(shape.not_honoured.iter().copied());
            let near = nearest(&member.key, known.clone().map(|name| (name, name)));
            let hint = match near.first() {
                Some(name) => format!("did you mean {name}?"),
                None if open => continue,
                None if shape.fields.len() <= 24 => {
                    format!(
                        "the fields here are {}",
                        shape.fields.iter().map(|f| f.name).collect::<Vec<_>>().join(", ")
                    )
                }
                None => String::new(),
            };
            let hint = (!hint.is_empty()).then_some(hint);
            found.misfit(
                member.key_at,
                &path,
                format!("there is no field {:?} here", member.key),
                hint,
            );
        }
    }
    for field in shape.fields.iter().filter(|f| f.required) {
        if node.get(field.name).is_none() {
            let message = format!("the field {:?} is missing", field.name);
            found.misfit(node.at, &path.key(field.name), message, None);
        }
    }
}

fn expected(shape: Shape) -> String {
    match shape {
        Shape::Any => "anything".to_owned(),
        Shape::Bool => "true or false".to_owned(),
        Shape::Integer { .. } => "a whole number".to_owned(),
        Shape::Number => "a number".to_owned(),
        Shape::Text { what, .. } | Shape::TextOrInteger { what, .. } => what.to_owned(),
        Shape::Enum(values) => format!("one of {}", values.join(", ")),
        Shape::List(element) => format!("a list, each element {}", expected(element())),
        Shape::Map(value) => format!("an object, each value {}", expected(value())),
        Shape::Object(_) | Shape::Open(_) => "an object".to_owned(),
    }
}

/// What a check found.
#[derive(Default)]
pub(crate) struct Found {
    pub(crate) misfits: Vec<Misfit>,
    pub(crate) not_honoured: Vec<(Position, Path)>,
}

impl Found {
    fn misfit(&mut self, at: Position, path: &Path, message: impl Into<String>, hint: Option<String>) {
        self.misfits.push(Misfit {
            at,
            path: path.clone(),
            message: message.into(),
            hint,
        });
    }
}
