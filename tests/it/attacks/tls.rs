//! With TLS configured, only TLS is served.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{CertifiedKey, KeyPair, generate_simple_self_signed};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore, crypto};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;

use super::wire::{address, closed_within, connect, exchange};
use crate::api::{Backend, Instance, until};

const ASK: &[u8] = b"GET /v1/products HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";

/// Writes a new certificate for `localhost`. Returns a connector that trusts it.
pub fn certify(folder: &Path) -> TlsConnector {
    let CertifiedKey { cert, signing_key }: CertifiedKey<KeyPair> =
        generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(folder.join("cert.pem"), cert.pem()).unwrap();
    std::fs::write(folder.join("key.pem"), signing_key.serialize_pem()).unwrap();
    trusting(cert.der().clone(), rustls::ALL_VERSIONS)
}

fn trusting(
    certificate: CertificateDer<'static>,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(certificate).unwrap();
    let provider = Arc::new(crypto::ring::default_provider());
    let config =
        ClientConfig::builder_with_provider(provider).with_protocol_versions(versions).unwrap();
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    // Each handshake must check the certificate.
    config.resumption = rustls::client::Resumption::disabled();
    Arc::new(config).into()
}

async fn ask(instance: &Instance, connector: &TlsConnector) -> Result<String, std::io::Error> {
    let name = ServerName::try_from("localhost").unwrap();
    let mut stream = connector.connect(name, connect(instance).await).await?;
    stream.write_all(ASK).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

pub async fn another_protocol(effort: usize) -> usize {
    let folder = crate::servers::tempfile();
    let backend = Backend::new().await;
    let mut connector = certify(&folder.path);
    let file = |name: &str| folder.path.join(name).to_str().unwrap().to_owned();
    let settings = [
        ("RUSHGATE_TLS_CERT_FILE", &*file("cert.pem")),
        ("RUSHGATE_TLS_KEY_FILE", &*file("key.pem")),
        ("RUSHGATE_HEADER_TIMEOUT_MS", "1500"),
    ];
    let instance = backend.serve_all(&settings).await;
    let mut tried = 0;
    for _ in 0..effort.min(5) {
        let answer = ask(&instance, &connector).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
        assert!(answer.contains("strict-transport-security: max-age="), "{answer}");
        // Plain HTTP, an empty handshake, garbage, or nothing: the connection is closed without an
        // answer.
        for bytes in [ASK, b"\x16\x03\x01\x00\x05hello", b"\0\0\0\0", b""] {
            let mut stream = connect(&instance).await;
            stream.write_all(bytes).await.unwrap();
            assert!(
                closed_within(&mut stream, Duration::from_secs(8)).await.is_some(),
                "{bytes:?}"
            );
            tried += 1;
        }
        assert!(!exchange(&instance, ASK).await.contains("HTTP/1.1"), "plain HTTP is answered");
        // A new certificate is used without a restart. A key that does not match changes nothing.
        std::fs::write(file("key.pem"), "nonsense").unwrap();
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        assert!(ask(&instance, &connector).await.is_ok());
        let before = std::mem::replace(&mut connector, certify(&folder.path));
        until("the new certificate is shown", async || ask(&instance, &connector).await.ok()).await;
        assert!(ask(&instance, &before).await.is_err(), "the old certificate is shown");
        tried += 3;
    }
    assert!(!address(&instance).is_empty());
    tried
}
