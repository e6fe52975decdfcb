//! TLS on the API's port (rustls). Certificate and key are read again whenever their files change.
//!
//! [`Tls`] is made at start and shares the current pair with the acceptor.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, crypto};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::reload;
use crate::config::{InvalidSetting, TlsFiles};

/// The certificate of the API's port.
pub struct Tls {
    files: [PathBuf; 2],
    current: Arc<Current>,
}

/// The certificate for new connections; open connections keep the one that they began with.
struct Current(ArcSwap<CertifiedKey>);

impl fmt::Debug for Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Current")
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

impl Tls {
    /// `None` where no files are set.
    pub fn from_settings(settings: &TlsFiles) -> Result<Option<Self>, InvalidSetting> {
        let (Some(cert), Some(key)) = (&settings.tls_cert_file, &settings.tls_key_file) else {
            return Ok(None);
        };
        let read = |name: &str, file: &PathBuf| {
            std::fs::read(file)
                .map_err(|error| InvalidSetting(format!("{name} {}: {error}", file.display())))
        };
        let (chain, private) =
            (read("RUSHGATE_TLS_CERT_FILE", cert)?, read("RUSHGATE_TLS_KEY_FILE", key)?);
        let certified = certified(&chain, &private).map_err(|reason| {
            InvalidSetting(format!("RUSHGATE_TLS_CERT_FILE and _KEY_FILE: {reason}"))
        })?;
        let current = Arc::new(Current(ArcSwap::from_pointee(certified)));
        Ok(Some(Self { files: [cert.clone(), key.clone()], current }))
    }

    pub fn acceptor(&self) -> Result<TlsAcceptor, InvalidSetting> {
        let provider = Arc::new(crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| InvalidSetting(format!("TLS cannot be used: {error}")))?
            .with_no_client_auth()
            .with_cert_resolver(Arc::<Current>::clone(&self.current));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config).into())
    }

    /// Follows the files of certificate and key. A pair that cannot be used is ignored.
    pub async fn follow(self, stopping: CancellationToken) {
        reload::follow(self.files.clone(), stopping, |[chain, key]| match certified(chain, key) {
            Ok(certified) => {
                self.current.0.store(Arc::new(certified));
                tracing::info!("certificate and key reloaded");
            }
            // Often one file has been replaced and the other will be in a moment.
            Err(reason) => {
                tracing::error!(
                    reason,
                    "the changed certificate or key cannot be used; the old pair stays in use"
                );
            }
        })
        .await;
    }
}

/// Parses a chain and its key, and checks that they belong together.
fn certified(chain: &[u8], key: &[u8]) -> Result<CertifiedKey, String> {
    let chain = CertificateDer::pem_slice_iter(chain)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| format!("the certificate chain cannot be read: {error}"))?;
    if chain.is_empty() {
        return Err("the file contains no certificate".to_owned());
    }
    let key = PrivateKeyDer::from_pem_slice(key)
        .map_err(|error| format!("the key cannot be read: {error}"))?;
    let key = crypto::ring::sign::any_supported_type(&key)
        .map_err(|error| format!("the key cannot be used: {error}"))?;
    let certified = CertifiedKey::new(chain, key);
    certified
        .keys_match()
        .map_err(|error| format!("the key does not belong to the certificate: {error}"))?;
    Ok(certified)
}
