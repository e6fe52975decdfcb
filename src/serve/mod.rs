//! `rushgate serve`: checks the settings, connects, migrates, runs the instance's roles, and stops
//! them in order.
//!
//! Only Redis must be reachable at the start. PostgreSQL and RabbitMQ may be away: see [`database`]
//! and [`reach_broker`]. Roles that panic or return are restarted ([`supervisor`]). A server task
//! that ends stops the process ([`tasks`]).

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use futures::FutureExt;
use jiff::tz::TimeZone;
use metrics_exporter_prometheus::PrometheusHandle;
use sqlx::PgPool;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::bounds::{
    AUDIT_LIMIT, BACKGROUND_STOP_LIMIT, CONNECT_TIMEOUT, FOLLOWERS_NICENESS, LAST_STEPS_LIMIT,
    RETRY_PAUSE, SHUTDOWN_TIMEOUT,
};
use crate::config::{InvalidSetting, Role, Serve};
use crate::gate::Gate;
use crate::gate::holds::end_holds;
use crate::http::live::Live;
use crate::http::load_shed::ConcurrencyLimits;
use crate::http::rates::Rates;
use crate::http::server::BindError;
use crate::http::server::Transport;
use crate::http::tls::Tls;
use crate::http::{Api, BrowserPolicy, Health, Ops, TokenVerifier};
use crate::reconciler::Reconciler;
use crate::redis::RedisSetupError;
use crate::relay;
use crate::scheduler::{self, Scheduler};
use crate::telemetry::metrics::LATE_CONFIRMS;
use crate::telemetry::sampled::Sampled;
use crate::thread::{DedicatedRuntime, ThreadError};
use crate::truth::migrate::MigrateError;
use crate::truth::{self, Truth};
use crate::{audit, config, http, lost_decisions, telemetry};
use database::Prepared;
use sampler::Sampler;
use supervisor::supervise;
use tasks::Tasks;

mod database;
mod rights;
mod sampler;
mod supervisor;
mod tasks;

/// Why an instance cannot run. Displays as one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(transparent)]
    Setting(#[from] InvalidSetting),
    #[error(transparent)]
    Redis(#[from] RedisSetupError),
    #[error(transparent)]
    Database(#[from] MigrateError),
    #[error(
        "PostgreSQL cannot be used ({0}): start it and create the database, or correct RUSHGATE_DATABASE_URL"
    )]
    Unusable(String),
    #[error("{0}")]
    Rights(String),
    #[error(
        "a task of this process has ended ({0}): restart the process, and report this as a defect"
    )]
    Ended(String),
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error(transparent)]
    Thread(#[from] ThreadError),
    #[error("the metrics recorder cannot be installed: {0}")]
    Metrics(#[from] metrics_exporter_prometheus::BuildError),
}

/// The addresses on which an instance listens; port 0 in the settings is a real port here.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// `None` without the role `api`.
    pub api: Option<SocketAddr>,
    pub ops: SocketAddr,
}

/// Connections that the scheduler and the relay share.
const BACKGROUND_CONNECTIONS: u32 = 6;
/// Statements outside of the API may take longer: they work on many rows.
const BACKGROUND_STATEMENT_LIMIT: Duration = Duration::from_secs(60);

/// Runs until `stopping`. Sends the addresses to `ready` once requests are accepted.
pub async fn run(
    settings: Serve,
    stopping: impl Into<Stopping>,
    ready: oneshot::Sender<Addresses>,
) -> Result<(), ServeError> {
    settings.check()?;
    // First, because metrics counted before the installation are lost.
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
    let pool = truth::pool(
        &settings.servers.database_url,
        BACKGROUND_CONNECTIONS,
        BACKGROUND_STATEMENT_LIMIT,
    )?;
    let amqp = settings.servers.amqp_url.parse();
    let amqp = amqp.map_err(|_| InvalidSetting(relay::BrokerError::Address.to_string()))?;
    let gate = Gate::connect(&settings).await?;
    let background = CancellationToken::new();
    let stopping = stopping.into();
    let preparing = database::prepare(&settings.servers, &settings.roles, &background);
    // A long migration continues at the next start.
    let (prepared, preparing) = tokio::select! {
        prepared = preparing => prepared?,
        () = stopping.asked.cancelled() => return Ok(()),
        () = stopping.at_once.cancelled() => return Ok(()),
    };
    let (cannot_serve, refused) = oneshot::channel();
    let mut roles = JoinSet::new();
    roles.spawn(async move {
        if let Some(error) = preparing.await {
            let _ = cannot_serve.send(error); // the process may be stopping
        }
    });
    // The threads of the following roles; they end when they are dropped.
    let mut followers = Vec::new();
    if settings.has(Role::Reconciler) {
        let thread = DedicatedRuntime::start("rushgate-follow", settings.followers_niceness())?;
        for cell in 0..settings.servers.cells {
            roles.spawn(reconcile(
                &settings,
                cell,
                thread.runtime().clone(),
                &prepared,
                &background,
            ));
        }
        followers.push(thread);
    }
    let mut rabbitmq_connected = None;
    if settings.has(Role::Relay) {
        let url = settings.servers.amqp_url.clone();
        // Until the relay has found that it is not.
        let connected = Arc::new(AtomicBool::new(true));
        rabbitmq_connected = Some(Arc::clone(&connected));
        let thread = DedicatedRuntime::start("rushgate-relay", settings.followers_niceness())?;
        roles.spawn(reach_broker(amqp));
        let (pool, stop, prepared) = (pool.clone(), background.clone(), prepared.clone());
        let start = move || {
            let (url, pool, connected) = (url.clone(), pool.clone(), Arc::clone(&connected));
            let (stop, mut prepared) = (stop.clone(), prepared.clone());
            async move {
                if stop.run_until_cancelled(prepared.wait()).await.is_some() {
                    relay::run(&url, pool, connected, stop).await;
                }
                Ok::<_, Infallible>(())
            }
        };
        roles.spawn(supervise("relay", thread.runtime().clone(), background.clone(), start));
        followers.push(thread);
    }
    if settings.has(Role::Scheduler) {
        let (gate, pool, zone, stop) =
            (gate.clone(), pool.clone(), zone.clone(), background.clone());
        let prepared = prepared.clone();
        let start = move || {
            let scheduling = schedule(gate.clone(), pool.clone(), zone.clone(), stop.clone());
            let (stop, mut prepared) = (stop.clone(), prepared.clone());
            async move {
                if stop.run_until_cancelled(prepared.wait()).await.is_some() {
                    scheduling.await;
                }
                Ok::<_, Infallible>(())
            }
        };
        roles.spawn(supervise("scheduler", Handle::current(), background.clone(), start));
    }

    let listening = Listening {
        settings: &settings,
        metrics,
        verifier,
        tls,
        gate,
        pool,
        zone,
        prepared,
        refused,
        rabbitmq_connected,
    };
    let outcome = Box::pin(listening.run(stopping, ready)).await;
    background.cancel();
    let ended = async { while roles.join_next().await.is_some() {} };
    if tokio::time::timeout(BACKGROUND_STOP_LIMIT, ended).await.is_err() {
        tracing::warn!("background work was cut off; the next start repeats what was not finished");
    }
    drop(followers);
    // Spans are lost where the collector hangs.
    let _ = tokio::time::timeout(LAST_STEPS_LIMIT * 2 / 3, telemetry::trace::stop()).await;
    outcome
}

/// Runs a cell's reconciler on `runtime`.
fn reconcile(
    settings: &Serve,
    cell: u32,
    runtime: Handle,
    prepared: &Prepared,
    background: &CancellationToken,
) -> impl Future<Output = ()> + Send + 'static {
    let (servers, ack) = (settings.servers.clone(), settings.ack);
    let (prepared, stop) = (prepared.clone(), background.clone());
    let start = move || {
        let (servers, stop, mut prepared) = (servers.clone(), stop.clone(), prepared.clone());
        async move {
            if stop.run_until_cancelled(prepared.wait()).await.is_some() {
                let reconciler = Reconciler::connect(&servers, cell).await?;
                Box::pin(reconciler.paced_for(ack).run(stop)).await;
            }
            Ok::<_, RedisSetupError>(())
        }
    };
    supervise("reconciler", runtime, background.clone(), start)
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
    prepared: Prepared,
    /// Receives the reason why this version must not serve on this database, if it is found later.
    refused: oneshot::Receiver<ServeError>,
    rabbitmq_connected: Option<Arc<AtomicBool>>,
}

impl Listening<'_> {
    /// Listens on both ports until it is to stop and [`Serve::drain`] has passed.
    async fn run(
        self,
        stopping: Stopping,
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

        let closing = CancellationToken::new();
        let mut servers = Tasks::default();
        let health = Health::new(self.verifier.is_some().then(|| Arc::clone(&self.gate)));
        let looking = Arc::clone(&health).look_on(truth.clone(), closing.clone());
        servers.spawn("readiness", looking);
        let prepared = self.prepared;
        let render_metrics: http::RenderMetrics = {
            let (metrics, sampled) = (self.metrics.clone(), Arc::clone(&sampled));
            Arc::new(move || http::render_metrics(&metrics, &sampled))
        };
        let ops = Ops {
            health,
            waits_for: Box::new(move || prepared.trouble()),
            render_metrics: Arc::clone(&render_metrics),
            rabbitmq_connected: self.rabbitmq_connected.clone(),
            stopping: stopping.asked.clone(),
        };
        let mut transport = Transport::new(&settings.limits);
        let ops = http::ops_router(Arc::new(ops));
        let serving = http::server::run_with(ops_listener, ops, transport.clone(), closing.clone());
        servers.spawn("the operations port", serving);
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
                concurrency: ConcurrencyLimits::new(&settings.limits, settings.request_timeout()),
                browser_policy: BrowserPolicy::new(settings, self.tls.is_some()),
                product_pages: http::RenderedPages::default(),
                live: Arc::new(Live::new(settings.limits.live_streams())),
                refresh_popular: refresher(self.pool, self.zone),
                demo_shop: http::DemoShop::from_settings(
                    settings,
                    addresses.api.unwrap_or(settings.listen),
                ),
                render_metrics,
                audits: Arc::new(http::Audits::new(auditor(&settings.servers))),
                rabbitmq_connected: self.rabbitmq_connected,
            };
            // Creates the series, at 0, so that an alert sees the first one, too.
            let _ = LATE_CONFIRMS.counter(&[]);
            let gate = Arc::clone(&api.gate);
            let holds = end_holds(gate, settings.request_timeout(), closing.clone());
            servers.spawn("the end of holds", holds);
            let lost_decisions =
                lost_decisions::watch(Arc::clone(&api.gate), api.truth.clone(), closing.clone());
            servers.spawn("the watch for losses", lost_decisions);
            let (live, gate, closed) =
                (Arc::clone(&api.live), Arc::clone(&api.gate), closing.clone());
            servers.spawn("live streams", async move { live.sample(&gate, closed).await });
            let service = http::service(Arc::new(api));
            let serving = http::server::run_with(listener, service, transport, closing.clone());
            servers.spawn("the API's port", serving);
            servers.spawn("rate limits", rates.upkeep(closing.clone()));
            let closed = closing.clone();
            servers.spawn("the keys of tokens", async move {
                verifier.follow(closed.clone()).await;
                closed.cancelled().await; // without a file there is nothing to follow
            });
            if let Some(tls) = self.tls {
                servers.spawn("the certificate", tls.follow(closing.clone()));
            }
        }
        let metrics = DedicatedRuntime::start("rushgate-meters", FOLLOWERS_NICENESS)?;
        let upkeep = telemetry::metrics::upkeep(self.metrics, closing.clone());
        servers.spawn_on("metrics", upkeep, metrics.runtime());
        servers.spawn("figures", sampler.run(sampled, closing.clone()));
        let roles: Vec<&str> = settings.roles.iter().map(|role| role.name()).collect();
        let api = addresses.api.map(tracing::field::display);
        tracing::info!(api, ops = %addresses.ops, roles = roles.join(","), "serving");
        let _ = ready.send(addresses); // no receiver is required
        let outcome = tokio::select! {
            () = stopping.drained(settings.drain()) => Ok(()),
            ended = servers.one_ends() => Err(ServeError::Ended(ended)),
            Ok(error) = self.refused => {
                tracing::error!(%error, "this version must not serve on this database; the instance stops");
                stopping.asked.cancel();
                stopping.drained(settings.drain()).await;
                Err(error)
            }
        };
        closing.cancel();
        tracing::info!("stopping: no new requests; requests in flight are finished");
        let limit = SHUTDOWN_TIMEOUT - BACKGROUND_STOP_LIMIT - LAST_STEPS_LIMIT;
        if tokio::time::timeout(limit, servers.all_end()).await.is_err() {
            tracing::warn!("requests in flight did not finish in time and were cut off");
        }
        outcome
    }
}

/// How an instance is told to stop.
#[derive(Clone, Debug, Default)]
pub struct Stopping {
    /// `/readyz` turns 503, and the ports close after [`Serve::drain`].
    pub asked: CancellationToken,
    /// The ports close immediately.
    pub at_once: CancellationToken,
}

impl From<CancellationToken> for Stopping {
    fn from(asked: CancellationToken) -> Self {
        Self { asked, at_once: CancellationToken::new() }
    }
}

impl Stopping {
    /// Waits for the request to stop, then until load balancers have had time to notice.
    async fn drained(&self, drain: Duration) {
        tokio::select! {
            () = self.asked.cancelled() => {}
            () = self.at_once.cancelled() => return self.asked.cancel(),
        }
        if !drain.is_zero() {
            let secs = drain.as_secs();
            tracing::info!(
                secs,
                "stopping: /readyz answers 503, and requests are accepted for {secs} s more"
            );
            let _ = self.at_once.run_until_cancelled(tokio::time::sleep(drain)).await;
        }
    }
}

/// Tries one connection at start-up, so that a wrong address or password is logged immediately,
/// also when the relay is only on standby. Nothing waits for this: events wait in PostgreSQL, and
/// the relay keeps trying.
async fn reach_broker(uri: lapin::uri::AMQPUri) {
    let connecting = lapin::Connection::connect_uri(uri, lapin::ConnectionProperties::default());
    let why = match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(Ok(connection)) => {
            let _ = connection.close(200, "reached".into()).await; // it was only a test
            return;
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer in {} s", CONNECT_TIMEOUT.as_secs()),
    };
    tracing::warn!(
        "RabbitMQ cannot be used yet ({why}): start it, correct RUSHGATE_AMQP_URL, or leave `relay` out of \
         RUSHGATE_ROLES; events wait in PostgreSQL"
    );
}

async fn schedule(gate: Arc<Gate>, pool: PgPool, zone: TimeZone, stop: CancellationToken) {
    // After a start, the gate may have to be built first.
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

/// Audits with connections of its own, which are closed afterwards.
fn auditor(servers: &config::Servers) -> http::RunAudit {
    let servers = servers.clone();
    Arc::new(move |wait| {
        let servers = servers.clone();
        async move {
            let pool = truth::pool_for_audit(&servers.database_url, AUDIT_LIMIT)
                .map_err(|error| error.to_string())?;
            let auditing = Box::pin(audit::audit(&servers, &pool, audit::Options { wait }));
            let report = tokio::time::timeout(AUDIT_LIMIT, auditing).await;
            pool.close().await;
            match report {
                Ok(report) => report.map_err(|error| error.to_string()),
                Err(_) => Err(format!("the audit took longer than {} s", AUDIT_LIMIT.as_secs())),
            }
        }
        .boxed()
    })
}

fn refresher(pool: PgPool, zone: TimeZone) -> http::RefreshPopular {
    Arc::new(move |now| {
        let (pool, zone) = (pool.clone(), zone.clone());
        // A task of its own: a client that hangs up must not interrupt a transaction.
        let made = tokio::spawn(async move { scheduler::refresh_now(&pool, &zone, now).await });
        async move { made.await.map_err(|e| e.to_string())?.map_err(|e| e.to_string()) }.boxed()
    })
}
