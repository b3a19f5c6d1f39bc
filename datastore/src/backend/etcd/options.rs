//! Where the cluster is and how to speak to it: from an address and from the variables that people of Calico know.
//!
//! ```text
//! etcd://h1:2379,h2:2379,h3/?cacert=/etc/margay/ca.pem&cert=/etc/margay/node.pem&key=/etc/margay/node-key.pem
//! https://h1:2379,https://h2:2379          etcds://h1          http://127.0.0.1:2379
//! ```
//!
//! What the address does not say is taken from `ETCD_CA_CERT_FILE`, `ETCD_CERT_FILE`, `ETCD_KEY_FILE`, `ETCD_USERNAME`,
//! `ETCD_PASSWORD` or `ETCD_PASSWORD_FILE`. A password has no place in an address, which everybody sees who lists processes.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// etcd's port for clients.
const PORT: u16 = 2379;

/// etcd takes more frequent pings for an attack and closes the connection.
const SHORTEST_PING: Duration = Duration::from_secs(5);

/// Looks up a variable of the environment. Passed in, so that what is read from there is the caller's decision.
pub type Environment<'a> = &'a (dyn Fn(&str) -> Option<String> + Sync);

/// How to reach a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Its members; at least one. All speak TLS, or none.
    pub endpoints: Vec<Endpoint>,
    /// Whether they speak TLS.
    pub tls: bool,
    /// Certificates (PEM) of the authorities that sign the servers'; the system's when absent.
    pub ca_file: Option<PathBuf>,
    /// Our certificate (PEM) and its private key.
    pub identity_files: Option<(PathBuf, PathBuf)>,
    /// User name, where the cluster asks for one.
    pub username: Option<String>,
    /// The user's password.
    pub password: Password,
    /// How long a read or write of single keys may take at one member.
    pub call_timeout: Duration,
    /// How long one page of a list may take.
    pub list_timeout: Duration,
    /// How long it may take to connect.
    pub connect_timeout: Duration,
    /// Silence after which a connection is probed with an HTTP/2 ping; at least five seconds.
    pub ping_interval: Duration,
    /// How long the answer may take before the connection is given up.
    pub ping_timeout: Duration,
}

/// A member's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// A name or an IP address, without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

/// Where a password is. Its `Debug` does not show it.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum Password {
    /// There is none.
    #[default]
    None,
    /// Here.
    Text(String),
    /// The first line of this file, read at every login.
    File(PathBuf),
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Text(_) => f.write_str("Text(…)"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl Endpoint {
    /// True if what is sent there does not leave the machine.
    pub(crate) fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }

    /// Understands `host`, `host:port` and `[::1]:port`.
    pub(crate) fn parse(text: &str, default_port: u16) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no host:port");
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']').ok_or_else(wrong)?;
                host.parse::<std::net::Ipv6Addr>().map_err(|_| wrong())?;
                (
                    host,
                    port.strip_prefix(':')
                        .or((port.is_empty()).then_some(""))
                        .ok_or_else(wrong)?,
                )
            }
            None => match text.rsplit_once(':') {
                Some((host, _)) if host.contains(':') => {
                    return Err(format!(
                        "{text:?}: an IPv6 address stands in brackets, [::1]:{default_port}"
                    ));
                }
                Some((_, "")) => return Err(wrong()),
                Some((host, port)) => (host, port),
                None => (text, ""),
            },
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
        if host.is_empty() || !host.chars().all(plain) {
            return Err(wrong());
        }
        let port = if port.is_empty() {
            default_port
        } else {
            port.parse().map_err(|_| wrong())?
        };
        Ok(Self {
            host: host.to_owned(),
            port,
        })
    }
}

impl Options {
    /// Understands an address; what it does not say is looked up in `environment`.
    ///
    /// # Errors
    /// A sentence on what is wrong with it.
    pub fn parse(address: &str, environment: Environment<'_>) -> Result<Self, String> {
        let (members, query) = address.split_once('?').unwrap_or((address, ""));
        let mut options = Self {
            endpoints: Vec::new(),
            tls: false,
            ca_file: None,
            identity_files: None,
            username: None,
            password: Password::None,
            call_timeout: Duration::from_secs(3),
            list_timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(3),
            ping_interval: Duration::from_secs(10),
            ping_timeout: Duration::from_secs(5),
        };
        let variable = |name: &str| environment(name).filter(|value| !value.is_empty());
        let mut ca_file = variable("ETCD_CA_CERT_FILE").map(PathBuf::from);
        let mut cert = variable("ETCD_CERT_FILE").map(PathBuf::from);
        let mut key = variable("ETCD_KEY_FILE").map(PathBuf::from);
        options.username = variable("ETCD_USERNAME");
        options.password = variable("ETCD_PASSWORD").map_or(Password::None, Password::Text);
        if let Some(path) = variable("ETCD_PASSWORD_FILE") {
            options.password = Password::File(path.into());
        }
        let mut plaintext = variable("MARGAY_ETCD_PLAINTEXT").is_some_and(|value| value == "allow");
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = unescape(value).ok_or_else(|| format!("{pair:?} has a bad % escape"))?;
            match name {
                "cacert" => ca_file = Some(value.into()),
                "cert" => cert = Some(value.into()),
                "key" => key = Some(value.into()),
                "username" => options.username = Some(value),
                "password-file" => options.password = Password::File(value.into()),
                "plaintext" if value == "allow" => plaintext = true,
                "timeout" => options.call_timeout = seconds(name, &value)?,
                "list-timeout" => options.list_timeout = seconds(name, &value)?,
                "ping" => options.ping_interval = seconds(name, &value)?,
                "ping-timeout" => options.ping_timeout = seconds(name, &value)?,
                _ => {
                    return Err(format!(
                        "{pair:?}: expected cacert=, cert=, key=, username=, password-file=, plaintext=allow, timeout=, \
                         list-timeout=, ping= or ping-timeout="
                    ));
                }
            }
        }
        if options.ping_interval < SHORTEST_PING {
            return Err(format!(
                "ping={}s: etcd closes connections that are pinged more often than every {} seconds",
                options.ping_interval.as_secs(),
                SHORTEST_PING.as_secs()
            ));
        }
        options.identity_files = match (cert, key) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            (Some(_), None) => {
                return Err("a client certificate needs its key (key=, ETCD_KEY_FILE)".to_owned());
            }
            (None, Some(_)) => {
                return Err("a client key needs its certificate (cert=, ETCD_CERT_FILE)".to_owned());
            }
        };
        options.ca_file = ca_file;
        options.read_members(members)?;
        if options.username.is_none() && options.password != Password::None {
            return Err("there is a password but no user name (username=, ETCD_USERNAME)".to_owned());
        }
        if options.username.is_some() && options.password == Password::None {
            return Err("there is a user name but no password (password-file=, ETCD_PASSWORD)".to_owned());
        }
        if !options.tls {
            options.ca_file = None;
            options.identity_files = None;
        }
        let outside = options.endpoints.iter().find(|endpoint| !endpoint.is_loopback());
        if let Some(endpoint) = outside.filter(|_| !options.tls && !plaintext) {
            return Err(format!(
                "{endpoint} would be spoken to without TLS, readable and changeable for everybody on the way; use \
                 https:// or etcds:// with certificates, or allow it with plaintext=allow or MARGAY_ETCD_PLAINTEXT=allow"
            ));
        }
        Ok(options)
    }

    /// The members, and whether they speak TLS.
    fn read_members(&mut self, members: &str) -> Result<(), String> {
        let mut tls: Option<bool> = None;
        let with_files = self.ca_file.is_some() || self.identity_files.is_some();
        for member in members.split(',') {
            let member = member.trim();
            let (said, rest) = match member.split_once("://") {
                Some(("https" | "etcds", rest)) => (Some(true), rest),
                Some(("http", rest)) => (Some(false), rest),
                // Without a word on it: as the certificates that are given suggest.
                Some(("etcd", rest)) => (Some(with_files), rest),
                Some((scheme, _)) => return Err(format!("{scheme}:// is no scheme of etcd")),
                None => (tls, member),
            };
            if tls.is_some() && said != tls {
                return Err("some members speak TLS and some do not".to_owned());
            }
            tls = said;
            let authority = rest.strip_suffix('/').unwrap_or(rest);
            if authority.contains('@') {
                return Err(
                    "a password has no place in an address; use username= with password-file=, or ETCD_USERNAME with ETCD_PASSWORD"
                        .to_owned(),
                );
            }
            let endpoint = Endpoint::parse(authority, PORT)?;
            if !self.endpoints.contains(&endpoint) {
                self.endpoints.push(endpoint);
            }
        }
        self.tls = tls.unwrap_or(with_files);
        Ok(())
    }

    /// The address without secrets, for people.
    pub fn location(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        let endpoints: Vec<String> = self.endpoints.iter().map(|e| format!("{scheme}://{e}")).collect();
        endpoints.join(",")
    }
}

/// `3`, `3s`, `500ms`.
pub(crate) fn seconds(name: &str, text: &str) -> Result<Duration, String> {
    let (number, unit) = match text.strip_suffix("ms") {
        Some(number) => (number, Duration::from_millis(1)),
        None => (text.strip_suffix('s').unwrap_or(text), Duration::from_secs(1)),
    };
    match number.parse::<u32>() {
        Ok(n) if n > 0 && unit * n <= Duration::from_secs(3_600) => Ok(unit * n),
        _ => Err(format!(
            "{name}={text}: expected a time such as 3s or 500ms, an hour at most"
        )),
    }
}

pub(crate) fn unescape(text: &str) -> Option<String> {
    let mut pieces = text.split('%');
    let mut bytes = pieces.next()?.as_bytes().to_vec();
    for piece in pieces {
        bytes.push(u8::from_str_radix(piece.get(..2)?, 16).ok()?);
        bytes.extend_from_slice(piece.get(2..)?.as_bytes());
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(address: &str) -> Result<Options, String> {
        Options::parse(address, &|_| None)
    }

    fn with(address: &str, variables: &[(&str, &str)]) -> Result<Options, String> {
        Options::parse(address, &|name| {
            variables
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn every_way_to_write_the_members() {
        for (address, location) in [
            ("etcd://127.0.0.1:2379", "http://127.0.0.1:2379"),
            ("etcd://127.0.0.1/", "http://127.0.0.1:2379"),
            (
                "http://localhost:7,http://[::1]:8",
                "http://localhost:7,http://[::1]:8",
            ),
            (
                "http://localhost,[::1]",
                "http://localhost:2379,http://[::1]:2379",
            ),
            ("etcds://a,b:1", "https://a:2379,https://b:1"),
            ("https://a:2379, https://b:2379/", "https://a:2379,https://b:2379"),
            ("https://a,a:2379", "https://a:2379"),
            ("etcd://a:1,b:2/?cacert=/ca", "https://a:1,https://b:2"),
            ("etcd://a?plaintext=allow", "http://a:2379"),
        ] {
            assert_eq!(
                parse(address).map(|o| o.location()),
                Ok(location.to_owned()),
                "{address}"
            );
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_the_reason() {
        for (address, reason) in [
            ("etcd://10.0.0.1:2379", "without TLS"),
            ("http://etcd.example", "without TLS"),
            ("http://127.0.0.1,http://10.0.0.1", "10.0.0.1:2379 would be"),
            ("https://a,http://b", "some members speak TLS"),
            ("etcd://", "is no host:port"),
            ("etcd://a:b", "is no host:port"),
            ("etcd://a:", "is no host:port"),
            ("etcd://::1", "in brackets"),
            ("etcd://[::1", "is no host:port"),
            ("etcd://[::1]x", "is no host:port"),
            ("etcd://a b", "is no host:port"),
            ("etcd://root:secret@a", "no place in an address"),
            ("ftp://a", "is no scheme"),
            ("https://a?cert=/c", "needs its key"),
            ("https://a?key=/c", "needs its certificate"),
            ("https://a?username=u", "but no password"),
            ("https://a?password-file=/p", "but no user name"),
            ("https://a?colour=red", "expected cacert="),
            ("https://a?cacert=%zz", "bad % escape"),
            ("https://a?ping=2s", "more often than every 5"),
            ("https://a?timeout=0", "expected a time"),
            ("https://a?timeout=2h", "expected a time"),
        ] {
            let said = parse(address).expect_err(address);
            assert!(said.contains(reason), "{address}: {said}");
        }
    }

    #[test]
    fn calicos_variables_count_and_the_address_has_the_last_word() {
        let variables = [
            ("ETCD_CA_CERT_FILE", "/env/ca"),
            ("ETCD_CERT_FILE", "/env/cert"),
            ("ETCD_KEY_FILE", "/env/key"),
            ("ETCD_USERNAME", "env"),
            ("ETCD_PASSWORD", "geheim"),
            ("ETCD_PASSWORD_FILE", ""),
        ];
        let options = with("etcd://a", &variables).unwrap();
        assert!(options.tls, "certificates mean TLS");
        assert_eq!(options.ca_file, Some("/env/ca".into()));
        assert_eq!(
            options.identity_files,
            Some(("/env/cert".into(), "/env/key".into()))
        );
        assert_eq!(options.username.as_deref(), Some("env"));
        assert_eq!(options.password, Password::Text("geheim".to_owned()));
        assert!(
            !format!("{options:?}").contains("geheim"),
            "secrets are not logged"
        );
        assert!(!options.location().contains("env"));

        let address = "etcd://a?cacert=/my%20ca&username=me&password-file=/pw&timeout=500ms";
        let options = with(address, &variables).unwrap();
        assert_eq!(options.ca_file, Some("/my ca".into()));
        assert_eq!(options.username.as_deref(), Some("me"));
        assert_eq!(options.password, Password::File("/pw".into()));
        assert_eq!(options.call_timeout, Duration::from_millis(500));

        let allowed = with("http://10.0.0.1", &[("MARGAY_ETCD_PLAINTEXT", "allow")]);
        assert!(allowed.is_ok());
        assert!(with("http://10.0.0.1", &[("MARGAY_ETCD_PLAINTEXT", "yes")]).is_err());
    }
}
