//! TLS with certificates on both sides, taken anew from their files when these change.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

/// Where the certificates are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// Our certificate, and those between it and the authority (PEM).
    pub cert: PathBuf,
    /// Its private key (PEM).
    pub key: PathBuf,
    /// The authorities that sign the other side's certificates (PEM).
    pub ca: PathBuf,
}

/// Size and time of each file.
type Fingerprint = [Option<(u64, SystemTime)>; 3];

impl Files {
    fn fingerprint(&self) -> Fingerprint {
        [&self.cert, &self.key, &self.ca].map(|path| {
            let found = std::fs::metadata(path).ok()?;
            Some((found.len(), found.modified().ok()?))
        })
    }

    fn chain(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), String> {
        let key =
            PrivateKeyDer::from_pem_file(&self.key).map_err(|e| format!("{}: {e}", self.key.display()))?;
        Ok((certificates(&self.cert)?, key))
    }

    fn roots(&self) -> Result<RootCertStore, String> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&self.ca)? {
            roots
                .add(certificate)
                .map_err(|e| format!("{}: {e}", self.ca.display()))?;
        }
        Ok(roots)
    }

    /// What a server with these files does: a client without a certificate of the authority is turned away.
    ///
    /// # Errors
    /// What is wrong with which file.
    pub fn server(&self) -> Result<Arc<ServerConfig>, String> {
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(self.roots()?), provider.clone())
            .build()
            .map_err(|e| format!("{}: {e}", self.ca.display()))?;
        let (chain, key) = self.chain()?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| e.to_string())?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(|e| format!("{}: {e}", self.cert.display()))?;
        // Each connection shows its certificate anew: one that is resumed would outlive it.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }

    /// What a client with these files does.
    ///
    /// # Errors
    /// What is wrong with which file.
    pub fn client(&self) -> Result<Arc<ClientConfig>, String> {
        let (chain, key) = self.chain()?;
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|e| e.to_string())?
            .with_root_certificates(self.roots()?)
            .with_client_auth_cert(chain, key)
            .map_err(|e| format!("{}: {e}", self.cert.display()))?;
        Ok(Arc::new(config))
    }
}

/// The name that a server's certificate has to have.
///
/// # Errors
/// It is neither a DNS name nor an address.
pub fn server_name(host: &str) -> Result<ServerName<'static>, String> {
    ServerName::try_from(host.to_owned())
        .map_err(|_| format!("{host:?} is neither a DNS name nor an address"))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let name = path.display();
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path)
        .map_err(|e| format!("{name}: {e}"))?
        .collect();
    let found = found.map_err(|e| format!("{name}: {e}"))?;
    if found.is_empty() {
        return Err(format!("{name} has no certificate"));
    }
    Ok(found)
}

/// A server's configuration, current with its files. Files that are no good do not take away what works.
#[derive(Debug)]
pub(super) struct Current {
    files: Files,
    state: Mutex<(Fingerprint, Arc<ServerConfig>)>,
}

impl Current {
    pub(super) fn new(files: Files) -> Result<Self, String> {
        let fingerprint = files.fingerprint();
        let config = files.server()?;
        Ok(Self {
            files,
            state: Mutex::new((fingerprint, config)),
        })
    }

    pub(super) fn config(&self) -> Arc<ServerConfig> {
        let found = self.files.fingerprint();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.0 != found {
            state.0 = found;
            match self.files.server() {
                Ok(config) => {
                    tracing::info!("certificates were read again");
                    state.1 = config;
                }
                Err(reason) => tracing::warn!(reason, "changed certificates are not used"),
            }
        }
        state.1.clone()
    }
}
