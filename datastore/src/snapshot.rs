//! A copy of the store on this machine's disk, for starting while the store is away.
//!
//! A file of lines: a header with what it is a copy of and the checksum of all that follows, then one line per object. It
//! is written beside its name and renamed over it, so whoever reads it finds the old one or the new one. A file that is
//! damaged, of another store or of another format counts as none: losing the copy is never fatal.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::mirror::Map;
use crate::store::{Entry, Revision};

/// What this release writes, and the only thing it reads.
const FORMAT: u32 = 1;

/// A copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// What it is a copy of: the datastore's address.
    pub source: String,
    /// When it was made (RFC 3339).
    pub taken: String,
    /// What the store was like.
    pub revision: Revision,
    /// The objects.
    pub objects: Map,
}

#[derive(Serialize, Deserialize)]
struct Header {
    format: u32,
    source: String,
    taken: String,
    revision: u64,
    objects: usize,
    sha256: String,
}

/// An object: key, the revisions of its creation and last write, value.
#[derive(Serialize, Deserialize)]
struct Line(String, u64, u64, Content);

/// A value: text, as all of ours are, or whatever else somebody stored.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Bytes(Vec<u8>),
}

impl Snapshot {
    /// The file's content.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = String::new();
        for entry in self.objects.values() {
            let content = match std::str::from_utf8(&entry.value) {
                Ok(text) => Content::Text(text.to_owned()),
                Err(_) => Content::Bytes(entry.value.to_vec()),
            };
            let (create, modified) = (entry.create_revision.raw(), entry.mod_revision.raw());
            body.push_str(&json(&Line(entry.key.to_string(), create, modified, content)));
            body.push('\n');
        }
        let header = Header {
            format: FORMAT,
            source: self.source.clone(),
            taken: self.taken.clone(),
            revision: self.revision.raw(),
            objects: self.objects.len(),
            sha256: checksum(body.as_bytes()),
        };
        format!("{}\n{body}", json(&header)).into_bytes()
    }

    /// Reads what [`Snapshot::encode`] wrote.
    ///
    /// # Errors
    /// A sentence on what is wrong with it.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(bytes).map_err(|_| "it is not text".to_owned())?;
        let (header, body) = text.split_once('\n').ok_or("it has no header")?;
        let header: Header = serde_json::from_str(header).map_err(|e| format!("its header: {e}"))?;
        if header.format != FORMAT {
            return Err(format!(
                "it has format {}, this release reads {FORMAT}",
                header.format
            ));
        }
        if header.sha256 != checksum(body.as_bytes()) {
            return Err("its checksum is wrong".to_owned());
        }
        let mut objects = Map::new();
        for line in body.lines() {
            let Line(key, create, modified, content) =
                serde_json::from_str(line).map_err(|e| e.to_string())?;
            let key: Arc<str> = key.into();
            let value = match content {
                Content::Text(text) => text.into_bytes().into(),
                Content::Bytes(bytes) => bytes.into(),
            };
            let entry = Entry {
                key: key.clone(),
                value,
                create_revision: Revision::from_raw(create),
                mod_revision: Revision::from_raw(modified),
            };
            objects.insert(key, entry);
        }
        Ok(Self {
            source: header.source,
            taken: header.taken,
            revision: Revision::from_raw(header.revision),
            objects,
        })
    }

    /// Writes the file, readable by its owner alone.
    ///
    /// # Errors
    /// What the file system says; the file of before is then still there.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        let folder = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder)?;
        let beside = path.with_extension("new");
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&beside)?;
        file.write_all(&self.encode())?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        File::open(folder)?.sync_all()
    }

    /// Reads the file; `None` where there is none.
    ///
    /// # Errors
    /// A sentence on why the file that is there is of no use.
    pub fn load(path: &Path) -> Result<Option<Self>, String> {
        match fs::read(path) {
            Ok(bytes) => Self::decode(&bytes).map(Some),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e.to_string()),
        }
    }
}

/// None of the types here can fail: their keys are text.
fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

fn checksum(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use proptest::prelude::*;

    use super::*;

    fn snapshot(objects: &[(&str, &[u8])]) -> Snapshot {
        let entry = |(n, (key, value)): (usize, &(&str, &[u8]))| {
            let key: Arc<str> = (*key).into();
            let entry = Entry {
                key: key.clone(),
                value: (*value).into(),
                create_revision: Revision::from_raw(n as u64),
                mod_revision: Revision::from_raw(n as u64 + 7),
            };
            (key, entry)
        };
        Snapshot {
            source: "https://a:2379".to_owned(),
            taken: "2026-11-21T12:00:00Z".to_owned(),
            revision: Revision::from_raw(99),
            objects: objects.iter().enumerate().map(entry).collect(),
        }
    }

    #[test]
    fn a_file_is_private_whole_and_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state/snapshot");
        assert_eq!(Snapshot::load(&path), Ok(None));
        let first = snapshot(&[("/a", b"{\"x\":\n1}"), ("/b", &[0xff, 0, 1])]);
        first.save(&path).unwrap();
        assert_eq!(Snapshot::load(&path), Ok(Some(first)));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let second = snapshot(&[]);
        second.save(&path).unwrap();
        assert_eq!(Snapshot::load(&path), Ok(Some(second)));
        let names: Vec<_> = fs::read_dir(path.parent().unwrap()).unwrap().collect();
        assert_eq!(names.len(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_file_that_is_not_what_was_written_counts_as_damaged() {
        let good = snapshot(&[("/a", b"1"), ("/b", b"2")]).encode();
        for cut in 0..good.len() {
            assert!(Snapshot::decode(&good[..cut]).is_err(), "cut at {cut}");
        }
        let text = String::from_utf8(good).unwrap();
        for (from, to, reason) in [
            ("\"/b\"", "\"/c\"", "checksum"),
            ("\"format\":1", "\"format\":2", "format 2"),
            ("{\"format\"", "[\"format\"", "header"),
        ] {
            let said = Snapshot::decode(text.replace(from, to).as_bytes()).unwrap_err();
            assert!(said.contains(reason), "{said}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_stored_comes_back(objects in prop::collection::btree_map("/.{0,20}", prop::collection::vec(any::<u8>(), 0..40), 0..8)) {
            let pairs: Vec<(&str, &[u8])> = objects.iter().map(|(k, v)| (k.as_str(), v.as_slice())).collect();
            let written = snapshot(&pairs);
            prop_assert_eq!(Snapshot::decode(&written.encode()), Ok(written));
        }

        #[test]
        fn no_file_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Snapshot::decode(&bytes);
        }
    }
}
