//! The demo's calls into the rest of the crate.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::config::{Auth, Role, Serve, TlsFiles};
use crate::domain::UserId;
use crate::gate::{BatchLimits, Gate};
use crate::{http, seed, serve};

pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// Building the gate from an earlier demo's data may take a moment.
const OPEN_LIMIT: Duration = Duration::from_secs(60);
const OPEN_POLL: Duration = Duration::from_millis(50);

/// The visitor's settings, except for those that the demo sets itself: one instance with every
/// role, tokens signed with a secret of its own, and plain HTTP, so that the printed commands work.
pub fn settings(asked: Serve) -> Serve {
    Serve {
        roles: vec![Role::Api, Role::Reconciler, Role::Relay, Role::Scheduler],
        // A placeholder: the secret is in the data folder, which is not open yet.
        auth: Auth {
            jwt_secret: Some("kept in the data folder".into()),
            jwt_jwks_file: None,
            ..asked.auth
        },
        tls: TlsFiles::default(),
        ..asked
    }
}

/// Migrates, runs all roles, sends the addresses to `ready`, and returns once stopped.
pub async fn serve(
    settings: Serve,
    stop: CancellationToken,
    ready: oneshot::Sender<serve::Addresses>,
) -> Result<(), Error> {
    Ok(serve::run(settings, stop, ready).await?)
}

/// Waits until the gate is open and fills it. Returns a summary of the shop for the visitor.
pub async fn seed(settings: &Serve) -> Result<String, Error> {
    let limits = BatchLimits::default();
    let gate: Arc<Gate> = Gate::with_limits(&settings.servers, limits).await?;
    let give_up = Instant::now() + OPEN_LIMIT;
    while gate.status().await?.iter().any(|cell| cell.state != "open") {
        if Instant::now() > give_up {
            return Err("the gate did not open; see the lines above".into());
        }
        tokio::time::sleep(OPEN_POLL).await;
    }
    let contents = seed::run(&gate).await?;
    gate.close().await;
    Ok(contents)
}

pub fn token(settings: &Serve, subject: &str, scope: &str, ttl: Duration) -> Result<String, Error> {
    let secret = settings.auth.jwt_secret.as_deref().unwrap_or_default().as_bytes();
    Ok(http::mint_token_for(secret, &UserId::parse(subject)?, scope, ttl, &settings.auth.claims)?)
}
