//! Where the hubs are and how to speak to them.
//!
//! ```text
//! hub://hub1:5473,hub2/?cacert=/etc/margay/ca.pem&cert=/etc/margay/node.pem&key=/etc/margay/node-key.pem
//! ```
//!
//! What the address does not say is taken from `MARGAY_HUB_CA_FILE`, `MARGAY_HUB_CERT_FILE` and `MARGAY_HUB_KEY_FILE`.

use std::path::PathBuf;
use std::time::Duration;

use crate::backend::etcd::options::{Endpoint, Environment, seconds, unescape};
use crate::hub::tls::Files;
use crate::hub::wire::DEFAULT_PORT;

/// How to reach a hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The hubs; any of them will do. At least one.
    pub endpoints: Vec<Endpoint>,
    /// Certificates; `None`: plaintext.
    pub tls: Option<Files>,
    /// The node to say one is where no certificate says it; empty: none, an operator.
    pub node: String,
    /// How long a call may take, and the parts of a list each.
    pub timeout: Duration,
    /// How long it may take to connect, handshake and introduction included.
    pub connect_timeout: Duration,
    /// A hub that says nothing for so long is given up. It is to be three times its ping interval or more.
    pub silence: Duration,
}

impl Options {
    /// Understands an address; what it does not say is looked up in `environment`.
    ///
    /// # Errors
    /// A sentence on what is wrong with it.
    pub fn parse(address: &str, environment: Environment<'_>) -> Result<Self, String> {
        let rest = address
            .strip_prefix("hub://")
            .ok_or("it does not begin with hub://")?;
        let (hubs, query) = rest.split_once('?').unwrap_or((rest, ""));
        let hubs = hubs.strip_suffix('/').unwrap_or(hubs);
        let endpoints: Result<Vec<Endpoint>, String> = hubs
            .split(',')
            .map(|hub| Endpoint::parse(hub.trim(), DEFAULT_PORT))
            .collect();
        let variable = |name: &str| {
            environment(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        let mut ca = variable("MARGAY_HUB_CA_FILE");
        let mut cert = variable("MARGAY_HUB_CERT_FILE");
        let mut key = variable("MARGAY_HUB_KEY_FILE");
        let mut plaintext = false;
        let mut options = Self {
            endpoints: endpoints?,
            tls: None,
            node: String::new(),
            timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(5),
            silence: Duration::from_secs(30),
        };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = unescape(value).ok_or_else(|| format!("{pair:?} has a bad % escape"))?;
            match name {
                "cacert" => ca = Some(value.into()),
                "cert" => cert = Some(value.into()),
                "key" => key = Some(value.into()),
                "node" => options.node = crate::hub::identity::plain(&value)?,
                "plaintext" if value == "allow" => plaintext = true,
                "timeout" => options.timeout = seconds(name, &value)?,
                "connect-timeout" => options.connect_timeout = seconds(name, &value)?,
                "silence" => options.silence = seconds(name, &value)?,
                _ => {
                    return Err(format!(
                        "{pair:?}: expected cacert=, cert=, key=, node=, plaintext=allow, timeout=, connect-timeout= or silence="
                    ));
                }
            }
        }
        options.tls = match (ca, cert, key) {
            (Some(ca), Some(cert), Some(key)) => Some(Files { cert, key, ca }),
            (None, None, None) => None,
            _ => return Err("cacert=, cert= and key= belong together".to_owned()),
        };
        if options.tls.is_some() && !options.node.is_empty() {
            return Err("node= is said by the certificate".to_owned());
        }
        let abroad = options.endpoints.iter().find(|endpoint| !endpoint.is_loopback());
        if let (None, false, Some(endpoint)) = (&options.tls, plaintext, abroad) {
            return Err(format!(
                "without certificates to {endpoint}: what is written and who writes it could be anything. Give cacert=, cert= and key=, \
                 or plaintext=allow"
            ));
        }
        Ok(options)
    }

    /// The address without what is nobody's business, for people.
    pub fn location(&self) -> String {
        let endpoints: Vec<String> = self.endpoints.iter().map(Endpoint::to_string).collect();
        format!("hub://{}", endpoints.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(address: &str) -> Result<Options, String> {
        Options::parse(address, &|_| None)
    }

    #[test]
    fn addresses() {
        let options = parse("hub://127.0.0.1,[::1]:99/?node=n1&timeout=500ms&silence=2s").unwrap();
        assert_eq!(options.location(), "hub://127.0.0.1:5473,[::1]:99");
        assert_eq!((options.node.as_str(), options.tls), ("n1", None));
        assert_eq!(
            (options.timeout, options.silence),
            (Duration::from_millis(500), Duration::from_secs(2))
        );
        let files = Files {
            cert: "/c".into(),
            key: "/k".into(),
            ca: "/a".into(),
        };
        let options = parse("hub://h1,h2?cacert=/a&cert=/c&key=%2Fk").unwrap();
        assert_eq!(options.tls, Some(files.clone()));
        let environment = |name: &str| {
            let found = [
                ("MARGAY_HUB_CA_FILE", "/a"),
                ("MARGAY_HUB_CERT_FILE", "/c"),
                ("MARGAY_HUB_KEY_FILE", "/k"),
            ];
            found
                .iter()
                .find(|(n, _)| *n == name)
                .map(|(_, value)| (*value).to_owned())
        };
        assert_eq!(Options::parse("hub://h1", &environment).unwrap().tls, Some(files));
        assert!(parse("hub://10.0.0.1?plaintext=allow").is_ok());
    }

    #[test]
    fn what_is_unsafe_or_makes_no_sense_is_refused() {
        for (address, why) in [
            ("hub://10.0.0.1", "without certificates"),
            ("hub://h?cacert=/a&cert=/c", "belong together"),
            ("hub://h?cacert=/a&cert=/c&key=/k&node=n", "certificate"),
            ("hub://", "no host"),
            ("hub://127.0.0.1:x", "no host"),
            ("hub://::1", "brackets"),
            ("hub://127.0.0.1?node=a/b", "no name"),
            ("hub://127.0.0.1?later=1", "expected"),
            ("hub://127.0.0.1?plaintext=yes", "expected"),
            ("hub://127.0.0.1?timeout=0", "expected a time"),
        ] {
            let reason = parse(address).unwrap_err();
            assert!(reason.contains(why), "{address}: {reason}");
        }
    }
}
