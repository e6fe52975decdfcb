//! Verifies tokens with the configured keys, and reads a changed key file again.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio_util::sync::CancellationToken;

use super::keyring::{Keyring, Rules};
use super::{Caller, TokenRefused};
use crate::config::{Auth, InvalidSetting};
use crate::http::reload;

/// Verifies tokens with the keys that are configured now.
pub struct TokenVerifier {
    keyring: ArcSwap<Keyring>,
    rules: Rules,
    /// The file that the keys come from, if they can change.
    file: Option<PathBuf>,
}

impl TokenVerifier {
    /// With the keys that the settings of `rushgate serve` name.
    pub fn from_settings(auth: &Auth) -> Result<Self, InvalidSetting> {
        auth.check()?;
        let rules = Rules { claims: auth.claims.clone(), leeway_secs: auth.jwt_leeway_secs };
        if let Some(secret) = &auth.jwt_secret {
            return Ok(Self::new(Keyring::from_secret(secret.as_bytes(), &rules), rules, None));
        }
        let path = auth.jwt_jwks_file.as_deref().unwrap_or_else(|| Path::new(""));
        let bad = |reason: String| {
            InvalidSetting(format!("RUSHGATE_JWT_JWKS_FILE {}: {reason}", path.display()))
        };
        let text = std::fs::read_to_string(path).map_err(|error| bad(error.to_string()))?;
        let keyring =
            Keyring::from_jwks(&text, &rules).map_err(|InvalidSetting(reason)| bad(reason))?;
        Ok(Self::new(keyring, rules, Some(path.to_owned())))
    }

    /// HS256 with a shared secret.
    pub fn from_secret(secret: &[u8]) -> Self {
        let rules = Rules::default();
        Self::new(Keyring::from_secret(secret, &rules), rules, None)
    }

    pub(super) fn new(keyring: Keyring, rules: Rules, file: Option<PathBuf>) -> Self {
        Self { keyring: ArcSwap::from_pointee(keyring), rules, file }
    }

    /// The caller that a token names.
    pub fn verify(&self, token: &str) -> Result<Caller, TokenRefused> {
        self.keyring.load().verify(token)
    }

    /// Replaces the keys whenever the file changes, until `stopping`. A file that cannot be used is
    /// logged and changes nothing.
    pub async fn follow(&self, stopping: CancellationToken) {
        let Some(file) = self.file.clone() else { return };
        reload::follow([file.clone()], stopping, |[text]| match self.renew(text) {
            Ok(keys) => tracing::info!(file = %file.display(), keys, "the keys of tokens were read again"),
            Err(InvalidSetting(reason)) => tracing::error!(
                file = %file.display(), reason, "the keys of tokens changed and cannot be used; the old ones stay"
            ),
        })
        .await;
    }

    /// Replaces the keys; returns how many there are now.
    pub(super) fn renew(&self, jwks: &[u8]) -> Result<usize, InvalidSetting> {
        let text = std::str::from_utf8(jwks).map_err(|error| InvalidSetting(error.to_string()))?;
        let keyring = Keyring::from_jwks(text, &self.rules)?;
        let keys = keyring.keys.len();
        self.keyring.store(Arc::new(keyring));
        Ok(keys)
    }
}
