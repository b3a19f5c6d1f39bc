//! From a datastore address to a store.

use std::path::PathBuf;
use std::sync::Arc;

use crate::backend::etcd::options::Environment;
use crate::backend::etcd::{self, Etcd};
use crate::backend::hub::{self, Hub};
use crate::backend::memory::Memory;
use crate::backend::sqlite::Sqlite;
use crate::store::{Error, Result, Store};

/// An address, understood.
#[derive(Debug, PartialEq, Eq)]
enum Address {
    Memory,
    Sqlite(PathBuf),
    Etcd(Box<etcd::Options>),
    Hub(Box<hub::Options>),
}

/// Where the store is: as was said, else where `ETCD_ENDPOINTS` says, else in a file of this machine.
pub fn address(said: Option<&str>, environment: Environment<'_>) -> String {
    let filled = |text: &&str| !text.is_empty();
    said.filter(filled).map_or_else(
        || {
            let endpoints = environment("ETCD_ENDPOINTS").filter(|e| !e.is_empty());
            endpoints.unwrap_or_else(|| crate::DEFAULT_URL.to_owned())
        },
        str::to_owned,
    )
}

/// Opens the store that an address names.
///
/// * `sqlite:///path/to/file.db`: created with mode 0600 if it does not exist;
/// * `etcd://host:2379,host2:2379/?cacert=…&cert=…&key=…`, `https://host:2379,…`: a cluster ([`etcd::options`]); it does
///   not have to be reachable yet. What the address does not say is looked up in `environment`;
/// * `hub://host:5473,host2:5473/?cacert=…&cert=…&key=…`: a cluster by way of a hub ([`hub::options`]), reachable or not;
/// * `memory:`: a new, empty store of this process, for tests.
///
/// # Errors
/// [`Error::Invalid`] for an address that makes no sense, else what the backend's opening says.
pub async fn open_with(address: &str, environment: Environment<'_>) -> Result<Arc<dyn Store>> {
    match parse(address, environment)? {
        Address::Memory => Ok(Arc::new(Memory::new())),
        Address::Sqlite(path) => Ok(Arc::new(Sqlite::open(path).await?)),
        Address::Etcd(options) => Ok(Arc::new(Etcd::new(*options))),
        Address::Hub(options) => Ok(Arc::new(Hub::new(*options))),
    }
}

/// [`open_with`] the address alone.
///
/// # Errors
/// As [`open_with`].
pub async fn open(address: &str) -> Result<Arc<dyn Store>> {
    open_with(address, &|_| None).await
}

fn parse(url: &str, environment: Environment<'_>) -> Result<Address> {
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
    match url.split_once("://") {
        Some(("etcd" | "etcds" | "http" | "https", _)) => match etcd::Options::parse(url, environment) {
            Ok(options) => Ok(Address::Etcd(Box::new(options))),
            Err(reason) => invalid(format!("datastore {url:?}: {reason}")),
        },
        Some(("hub", _)) => match hub::Options::parse(url, environment) {
            Ok(options) => Ok(Address::Hub(Box::new(options))),
            Err(reason) => invalid(format!("datastore {url:?}: {reason}")),
        },
        _ => invalid(format!(
            "datastore {url:?}: expected sqlite:///path/to/file.db, etcd://host:2379,…, https://host:2379,… or hub://host:5473,…"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let parse = |url| parse(url, &|_| None);
        assert_eq!(parse("memory:").unwrap(), Address::Memory);
        assert_eq!(
            parse("sqlite:///var/lib/m.db").unwrap(),
            Address::Sqlite("/var/lib/m.db".into())
        );
        for etcd in ["etcd://127.0.0.1:2379", "https://a:2379,https://b:2379"] {
            assert!(matches!(parse(etcd), Ok(Address::Etcd(_))), "{etcd}");
        }
        assert!(matches!(parse("hub://127.0.0.1"), Ok(Address::Hub(_))));
        for bad in [
            "",
            "hub://10.0.0.1",
            "sqlite:",
            "sqlite://relative.db",
            "sqlite:///",
            "sqlite:///dir/",
            "etcd:",
            "etcd://10.0.0.1:2379",
            "file:///x",
        ] {
            assert!(matches!(parse(bad), Err(Error::Invalid { .. })), "{bad:?}");
        }
    }

    #[test]
    fn what_was_said_counts_before_calicos_variable_and_that_before_the_file() {
        let calico = |name: &str| (name == "ETCD_ENDPOINTS").then(|| "https://a:2379".to_owned());
        assert_eq!(address(Some("memory:"), &calico), "memory:");
        assert_eq!(address(None, &calico), "https://a:2379");
        assert_eq!(address(Some(""), &calico), "https://a:2379");
        assert_eq!(address(None, &|_| None), crate::DEFAULT_URL);
        assert_eq!(address(None, &|_| Some(String::new())), crate::DEFAULT_URL);
    }
}
