//! Who a client is, from its certificate. Pure.

use std::collections::BTreeSet;
use std::sync::Arc;

use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

/// The longest name of a node (DNS's limit).
const MAX_NAME: usize = 253;

/// Who a client is, and with it what it may see and write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// The daemon of this node.
    Node(Arc<str>),
    /// An operator: everything.
    Admin,
}

impl Identity {
    /// The node's name.
    pub fn node(&self) -> Option<&str> {
        match self {
            Self::Node(name) => Some(name),
            Self::Admin => None,
        }
    }
}

/// What a certificate says of its holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The subject's common name; without one, the only DNS name of the subject's alternatives.
    pub name: String,
    /// When the certificate ends (seconds since 1970).
    pub not_after: i64,
}

/// Reads a certificate that was verified already.
///
/// # Errors
/// A sentence on why it names nobody.
pub fn holder(certificate: &[u8]) -> Result<Holder, String> {
    let (_, certificate) =
        X509Certificate::from_der(certificate).map_err(|e| format!("the certificate: {e}"))?;
    let not_after = certificate.validity().not_after.timestamp();
    let mut common = certificate.subject().iter_common_name();
    if let Some(name) = common.next() {
        if common.next().is_some() {
            return Err("the certificate's subject has several common names".to_owned());
        }
        let name = name
            .as_str()
            .map_err(|e| format!("the certificate's common name: {e}"))?;
        return Ok(Holder {
            name: plain(name)?,
            not_after,
        });
    }
    let alternatives = certificate
        .subject_alternative_name()
        .map_err(|e| format!("the certificate's alternative names: {e}"))?;
    let names: Vec<&str> = alternatives
        .iter()
        .flat_map(|names| &names.value.general_names)
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(*name),
            _ => None,
        })
        .collect();
    match names.as_slice() {
        [name] => Ok(Holder {
            name: plain(name)?,
            not_after,
        }),
        [] => Err("the certificate has neither a common name nor a DNS name".to_owned()),
        _ => Err("the certificate has no common name and several DNS names".to_owned()),
    }
}

/// The holder of that name: an operator if it is among those, else a node.
pub fn identity(name: &str, admins: &BTreeSet<String>) -> Identity {
    if admins.contains(name) {
        Identity::Admin
    } else {
        Identity::Node(name.into())
    }
}

/// A name that a node can have.
///
/// # Errors
/// A sentence on what is wrong with it.
pub fn plain(name: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(fits) {
        return Err(format!("{name:?} is no name of a node"));
    }
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(common: &[&str], names: &[&str]) -> Vec<u8> {
        let key = rcgen::KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        let mut params = rcgen::CertificateParams::new(names).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        for name in common {
            params.distinguished_name.push(rcgen::DnType::CommonName, *name);
        }
        params.not_after = rcgen::date_time_ymd(2040, 1, 1);
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn the_common_name_counts_and_without_one_the_only_dns_name() {
        let name = |common: &[&str], names: &[&str]| holder(&certificate(common, names)).map(|h| h.name);
        assert_eq!(
            name(&["node-1"], &["other", "127.0.0.1"]).as_deref(),
            Ok("node-1")
        );
        assert_eq!(name(&[], &["node-1.example"]).as_deref(), Ok("node-1.example"));
        assert_eq!(name(&[], &["node-1", "127.0.0.1"]).as_deref(), Ok("node-1"));
        for (common, names) in [
            (&[][..], &["a", "b"][..]),
            (&[], &["127.0.0.1"]),
            (&[], &[]),
            (&["../etc"], &[]),
            (&["a/b"], &[]),
            (&[""], &["a"]),
        ] {
            assert!(name(common, names).is_err(), "{common:?} {names:?}");
        }
        assert!(holder(b"no certificate").is_err());
        assert_eq!(
            holder(&certificate(&["a"], &[])).unwrap().not_after,
            2_208_988_800
        );
    }

    #[test]
    fn who_is_no_operator_is_a_node() {
        let admins = BTreeSet::from(["admin".to_owned()]);
        assert_eq!(identity("admin", &admins), Identity::Admin);
        assert_eq!(identity("node-1", &admins).node(), Some("node-1"));
        assert_eq!(identity("Admin", &admins).node(), Some("Admin"));
    }
}
