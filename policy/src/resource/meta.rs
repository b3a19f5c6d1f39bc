//! Object metadata, and the annotation in which an applied manifest remembers where it came from.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// `metadata` of every object.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectMeta {
    /// Name, unique per kind and namespace.
    #[serde(default)]
    pub name: String,
    /// Namespace of namespaced kinds; never an empty string.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Set by the store when the object is created; a re-created object has another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// The store's revision of the last change, as an opaque text; filled on reading, compared on writing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource_version: Option<String>,
    /// Counts changes of the spec.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<i64>,
    /// RFC 3339 time of creation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creation_timestamp: Option<String>,
    /// Labels that selectors match.
    #[serde(
        default,
        deserialize_with = "null_is_empty",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub labels: BTreeMap<String, String>,
    /// Free notes; nothing is selected by them.
    #[serde(
        default,
        deserialize_with = "null_is_empty",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub annotations: BTreeMap<String, String>,
    /// Members of `metadata` that other programs keep there (`ownerReferences`, `finalizers`, …).
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

fn null_is_empty<'de, D: serde::Deserializer<'de>>(d: D) -> Result<BTreeMap<String, String>, D::Error> {
    Ok(Option::deserialize(d)?.unwrap_or_default())
}

impl ObjectMeta {
    /// Metadata of a cluster-wide object.
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            ..Self::default()
        }
    }

    /// Metadata of an object in a namespace.
    pub fn namespaced(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: Some(namespace.into()),
            ..Self::named(name)
        }
    }

    /// Where the object was written by a person, if its annotation says so and can be read.
    pub fn source(&self) -> Option<Source> {
        Source::from_annotation(self.annotations.get(SOURCE_ANNOTATION)?)
    }

    /// Records where the object was written by a person.
    pub fn set_source(&mut self, source: &Source) {
        self.annotations
            .insert(SOURCE_ANNOTATION.to_owned(), source.to_annotation());
    }
}

/// The annotation that holds a [`Source`] as JSON.
pub const SOURCE_ANNOTATION: &str = "margay/source";

/// Where an object was written: the file, the line of its document, and for policies the line of every rule, so
/// that an explanation can point at the text its reader wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// File name as it was given on the command line.
    pub file: String,
    /// Line on which the object begins, from 1.
    pub line: u32,
    /// Line of each `spec.ingress` rule, from 1.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ingress: Vec<u32>,
    /// Line of each `spec.egress` rule, from 1.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<u32>,
}

impl Source {
    /// The annotation's text.
    pub fn to_annotation(&self) -> String {
        // A struct of strings and numbers always serialises.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Reads the annotation's text; `None` when it is not ours. The annotation is advisory, so a bad one is not
    /// an error.
    pub fn from_annotation(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }
}
