//! From a datastore address to a store.

use std::path::PathBuf;
use std::sync::Arc;

use crate::backend::memory::Memory;
use crate::backend::sqlite::Sqlite;
use crate::store::{Error, Result, Store};

/// An address, understood.
#[derive(Debug, PartialEq, Eq)]
enum Address {
    Memory,
    Sqlite(PathBuf),
}

/// Opens the store that an address names.
///
/// * `sqlite:///path/to/file.db`: created with mode 0600 if it does not exist;
/// * `memory:`: a new, empty store of this process, for tests.
///
/// # Errors
/// [`Error::Invalid`] for an address that this build does not know, else what the backend's opening says.
pub async fn open(url: &str) -> Result<Arc<dyn Store>> {
    match parse(url)? {
        Address::Memory => Ok(Arc::new(Memory::new())),
        Address::Sqlite(path) => Ok(Arc::new(Sqlite::open(path).await?)),
    }
}

fn parse(url: &str) -> Result<Address> {
    let invalid = |reason: String| Err(Error::Invalid { reason });
    if url == "memory:" {
        return Ok(Address::Memory);
    }
    if let Some(path) = url.strip_prefix("sqlite://") {
        if !path.starts_with('/') || path.ends_with('/') {
            return invalid(format!(
                "datastore {url:?}: expected sqlite:///absolute/path/to/file.db"
            ));
        }
        return Ok(Address::Sqlite(path.into()));
    }
    match url.split_once(':') {
        Some(("etcd" | "etcds", _)) => invalid(format!(
            "datastore {url:?}: the etcd backend is not built in yet; use sqlite:///path on one machine"
        )),
        _ => invalid(format!(
            "datastore {url:?}: expected sqlite:///path/to/file.db or memory:"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        assert_eq!(parse("memory:").unwrap(), Address::Memory);
        assert_eq!(
            parse("sqlite:///var/lib/m.db").unwrap(),
            Address::Sqlite("/var/lib/m.db".into())
        );
        for bad in [
            "",
            "sqlite:",
            "sqlite://relative.db",
            "sqlite:///",
            "sqlite:///dir/",
            "etcd://a:2379",
            "file:///x",
        ] {
            assert!(matches!(parse(bad), Err(Error::Invalid { .. })), "{bad:?}");
        }
        assert!(
            parse("etcd://a:2379")
                .unwrap_err()
                .to_string()
                .contains("not built in yet")
        );
    }
}
