//! `rushgate serve`: checks the settings, connects, migrates, runs its roles, and stops in order.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use futures::FutureExt;
use jiff::tz::TimeZone;
use metrics_exporter_prometheus::PrometheusHandle;
use sqlx::PgPool;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::bounds::{CONNECT_TIMEOUT, FOLLOWERS_NICENESS, RETRY_PAUSE, SHUTDOWN_TIMEOUT};
use crate::config::{InvalidSetting, Role, Serve};
use crate::gate::{Gate, RedisSetupError};
use crate::http::rates::Rates;
use crate::http::server::BindError;
use crate::http::server::Transport;
use crate::http::tls::Tls;
use crate::http::turns::Turns;
use crate::http::{Api, Edge, Ops, TokenVerifier};
use crate::reconciler::Reconciler;
use crate::relay;
use crate::scheduler::{self, Scheduler};
use crate::telemetry::sampler::{Sampled, Sampler};
use crate::thread::{OwnThread, ThreadError};
use crate::truth::migrate::{self, MigrateError};
use crate::truth::{self, Truth};
use crate::{http, losses, telemetry};

/// Why an instance cannot run; one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(transparent)]
    Setting(#[from] InvalidSetting),
    #[error(transparent)]
    Redis(#[from] RedisSetupError),
    #[error(transparent)]
    Database(#[from] MigrateError),
    #[error(
        "RabbitMQ cannot be used ({0}): start it, correct RUSHGATE_AMQP_URL, or leave `relay` out of RUSHGATE_ROLES"
    )]
    Amqp(String),
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error(transparent)]
    Thread(#[from] ThreadError),
    #[error("the metrics recorder cannot be installed: {0}")]
    Metrics(#[from] metrics_exporter_prometheus::BuildError),
}

/// Where an instance listens, once it does; port 0 in the settings becomes a real one here.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// `None` without the role `api`.
    pub api: Option<SocketAddr>,
    pub ops: SocketAddr,
}

/// Connections that the scheduler and the relay share.
const BACKGROUND_CONNECTIONS: u32 = 6;
/// Background roles stop after the API; this much of the time to stop is left for them.
const BACKGROUND_STOP_LIMIT: Duration = Duration::from_secs(3);
/// Statements outside the API may take longer: they work on many rows.
const BACKGROUND_STATEMENT_LIMIT: Duration = Duration::from_secs(60);

/// Runs until `stopping`. `ready` is told the addresses once requests are accepted.
pub async fn run(
    settings: Serve,
    stopping: CancellationToken,
    ready: oneshot::Sender<Addresses>,
) -> Result<(), ServeError> {
    settings.check()?;
    // Before anything that counts.
    let metrics = telemetry::metrics::install()?;
    telemetry::trace::start(&settings)?;
    let verifier = match settings.has(Role::Api) {
        true => Some(Arc::new(TokenVerifier::from_settings(&settings.auth)?)),
        false => None,
    };
    if settings.auth.weak_secret() {
        tracing::warn!(
            "RUSHGATE_JWT_SECRET is shorter than 32 bytes and may be guessed: make one with `openssl rand -hex 32`"
        );
    }
    let tls = Tls::from_settings(&settings.tls)?;
    let zone = TimeZone::get(&settings.timezone).map_err(|e| InvalidSetting(e.to_string()))?;
    let pool =
        truth::pool(&settings.servers.database_url, BACKGROUND_CONNECTIONS, BACKGROUND_STATEMENT_LIMIT)?;
    // A long migration goes on at the next start.
    tokio::select! {
        migrated = migrate::migrate(&settings.servers) => migrated?,
        () = stopping.cancelled() => return Ok(()),
    }
    let gate = Gate::connect(&settings).await?;
    if settings.has(Role::Relay) {
        reach_broker(&settings.servers.amqp_url).await?;
    }

    let background = CancellationToken::new();
    let mut roles = JoinSet::new();
    let mut followers = Vec::new(); // their threads, which must live as long as they
    if settings.has(Role::Reconciler) {
        followers.push(reconcile(&settings, &mut roles, &background).await?);
    }
    let mut rabbitmq_connected = None;
    if settings.has(Role::Relay) {
        let connected = Arc::new(AtomicBool::new(true)); // it was reached a moment ago
        rabbitmq_connected = Some(Arc::clone(&connected));
        let (url, pool, stop) = (settings.servers.amqp_url.clone(), pool.clone(), background.clone());
        let thread = OwnThread::start("rushgate-relay", settings.followers_niceness())?;
        roles.spawn_on(async move { relay::run(&url, pool, connected, stop).await }, thread.runtime());
        followers.push(thread);
    }
    if settings.has(Role::Scheduler) {
        roles.spawn(schedule(gate.clone(), pool.clone(), zone.clone(), background.clone()));
    }

    let listening =
        Listening { settings: &settings, metrics, verifier, tls, gate, pool, zone, rabbitmq_connected };
    let outcome = listening.run(stopping, ready).await;
    background.cancel();
    if tokio::time::timeout(BACKGROUND_STOP_LIMIT, roles.join_all()).await.is_err() {
        tracing::warn!(
            "background work was cut off; what it had not finished is done again at the next start"
        );
    }
    drop(followers);
    telemetry::trace::stop().await;
    outcome
}

/// Starts each cell's reconciler, on the thread that is returned.
async fn reconcile(
    settings: &Serve,
    roles: &mut JoinSet<()>,
    background: &CancellationToken,
) -> Result<OwnThread, RedisSetupError> {
    let thread = OwnThread::start("rushgate-follow", settings.followers_niceness())?;
    for cell in 0..settings.servers.cells {
        let servers = settings.servers.clone();
        let reconciler = thread.run(async move { Reconciler::connect(&servers, cell).await }).await??;
        roles.spawn_on(reconciler.paced_for(settings.ack).run(background.clone()), thread.runtime());
    }
    Ok(thread)
}

/// The part of an instance that answers requests.
struct Listening<'a> {
    settings: &'a Serve,
    metrics: PrometheusHandle,
    /// `None` without the role `api`.
    verifier: Option<Arc<TokenVerifier>>,
    tls: Option<Tls>,
    gate: Arc<Gate>,
    pool: PgPool,
    zone: TimeZone,
    rabbitmq_connected: Option<Arc<AtomicBool>>,
}

impl Listening<'_> {
    /// Listens on both ports until `stopping`.
    async fn run(
        self,
        stopping: CancellationToken,
        ready: oneshot::Sender<Addresses>,
    ) -> Result<(), ServeError> {
        let settings = self.settings;
        let timeout = settings.truth_timeout();
        let (url, connections) = (&settings.servers.database_url, settings.database_connections);
        let reads = truth::pool_for_reads(url, connections, timeout)?;
        let truth = Truth::new(reads.clone(), timeout);
        let sampled = Arc::<Sampled>::default();
        let sampler = Sampler {
            gate: Arc::clone(&self.gate),
            truth: truth.clone(),
            pools: vec![("reads", reads), ("background", self.pool.clone())],
            rabbitmq_connected: self.rabbitmq_connected.clone(),
            log_limit: settings.log_limit,
            queue_limit: settings.queue_limit,
        };
        let ops_listener = http::server::bind(settings.ops_listen, "RUSHGATE_OPS_LISTEN").await?;
        let local = |listener: &TcpListener, asked| listener.local_addr().unwrap_or(asked);
        let mut addresses = Addresses { api: None, ops: local(&ops_listener, settings.ops_listen) };

        let mut servers = JoinSet::new();
        let gate = self.verifier.is_some().then(|| Arc::clone(&self.gate));
        let ops = Ops {
            gate,
            truth: truth.clone(),
            metrics: self.metrics.clone(),
            sampled: Arc::clone(&sampled),
            rabbitmq_connected: self.rabbitmq_connected.clone(),
            stopping: stopping.clone(),
        };
        let mut transport = Transport::new(&settings.limits);
        servers.spawn(http::server::run_with(
            ops_listener,
            http::ops_router(Arc::new(ops)),
            transport.clone(),
            stopping.clone(),
        ));
        if let Some(verifier) = self.verifier {
            let listener = http::server::bind(settings.listen, "RUSHGATE_LISTEN").await?;
            addresses.api = Some(local(&listener, settings.listen));
            let rates = Arc::new(Rates::new(&settings.limits));
            transport.tells_peer = rates.needs_address();
            transport.tls = self.tls.as_ref().map(Tls::acceptor).transpose()?;
            let api = Api {
                gate: self.gate,
                truth,
                verifier: Arc::clone(&verifier),
                settings: settings.into(),
                rates: Arc::clone(&rates),
                turns: Turns::new(&settings.limits, settings.request_timeout()),
                edge: Edge { cors_origins: settings.cors_origins.clone(), tls: self.tls.is_some() },
                product_pages: http::RenderedPages::default(),
                refresh_popular: refresher(self.pool, self.zone),
                rabbitmq_connected: self.rabbitmq_connected,
            };
            servers.spawn(losses::watch(Arc::clone(&api.gate), api.truth.clone(), stopping.clone()));
            let service = http::service(Arc::new(api));
            servers.spawn(http::server::run_with(listener, service, transport, stopping.clone()));
            servers.spawn(rates.upkeep(stopping.clone()));
            let stop = stopping.clone();
            servers.spawn(async move { verifier.follow(stop).await });
            if let Some(tls) = self.tls {
                servers.spawn(tls.follow(stopping.clone()));
            }
        }
        let meters = OwnThread::start("rushgate-meters", FOLLOWERS_NICENESS)?;
        let upkeep = telemetry::metrics::upkeep(self.metrics, stopping.clone());
        servers.spawn_on(upkeep, meters.runtime());
        servers.spawn(sampler.run(sampled, stopping.clone()));
        tracing::info!(api = ?addresses.api, ops = %addresses.ops, roles = ?settings.roles, "serving");
        let _ = ready.send(addresses); // nobody has to be interested
        stopping.cancelled().await;
        tracing::info!("stopping: no new requests; those under way are finished");
        if tokio::time::timeout(SHUTDOWN_TIMEOUT - BACKGROUND_STOP_LIMIT, servers.join_all()).await.is_err() {
            tracing::warn!("requests still under way were cut off");
        }
        Ok(())
    }
}

/// One connection at start-up, so that a wrong address is found at once and not at night.
async fn reach_broker(url: &str) -> Result<(), ServeError> {
    let uri: lapin::uri::AMQPUri =
        url.parse().map_err(|e| InvalidSetting(relay::BrokerError::Address(e).to_string()))?;
    let connecting = lapin::Connection::connect_uri(uri, lapin::ConnectionProperties::default());
    match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(Ok(connection)) => {
            let _ = connection.close(200, "reached".into()).await; // it has served
            Ok(())
        }
        Ok(Err(e)) => Err(ServeError::Amqp(e.to_string())),
        Err(_) => Err(ServeError::Amqp(format!("no answer in {CONNECT_TIMEOUT:?}"))),
    }
}

async fn schedule(gate: Arc<Gate>, pool: PgPool, zone: TimeZone, stop: CancellationToken) {
    // An instance that has just been started may have to build the gate first.
    while !stop.is_cancelled()
        && gate.status().await.is_ok_and(|cells| cells.iter().any(|c| c.state != "open"))
    {
        tokio::select! {
            () = tokio::time::sleep(RETRY_PAUSE) => {}
            () = stop.cancelled() => {}
        }
    }
    let caught_up = |deadline| gate.catch_up(deadline).map(|done| done.map(|_| ()));
    Scheduler::new(pool, zone, caught_up).run(stop).await;
}

fn refresher(pool: PgPool, zone: TimeZone) -> http::RefreshPopular {
    Arc::new(move || {
        let (pool, zone) = (pool.clone(), zone.clone());
        // A task of its own: a client that hangs up must not cut a transaction off.
        let made = tokio::spawn(async move {
            scheduler::refresh_now(&pool, &zone, jiff::Timestamp::now().as_millisecond()).await
        });
        async move { made.await.map_err(|e| e.to_string())?.map_err(|e| e.to_string()) }.boxed()
    })
}
