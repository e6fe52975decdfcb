//! The part of an instance that answers requests: its two ports, and how it closes them.

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
use tokio_util::sync::CancellationToken;

use super::database::Prepared;
use super::tasks::Tasks;
use super::{BACKGROUND_STOP_LIMIT, ServeError};
use crate::config::Serve;
use crate::config::bounds::{FOLLOWERS_NICENESS, SHUTDOWN_TIMEOUT};
use crate::gate::Gate;
use crate::http::rates::Rates;
use crate::http::server::Transport;
use crate::http::tls::Tls;
use crate::http::turns::Turns;
use crate::http::{Api, Edge, Health, Ops, TokenVerifier};
use crate::telemetry::sampler::{Sampled, Sampler};
use crate::thread::OwnThread;
use crate::truth::{self, Truth};
use crate::{http, losses, scheduler, telemetry};

/// Where an instance listens, once it does; port 0 in the settings becomes a real one here.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// `None` without the role `api`.
    pub api: Option<SocketAddr>,
    pub ops: SocketAddr,
}

/// The part of an instance that answers requests.
pub(super) struct Listening<'a> {
    pub settings: &'a Serve,
    pub metrics: PrometheusHandle,
    /// `None` without the role `api`.
    pub verifier: Option<Arc<TokenVerifier>>,
    pub tls: Option<Tls>,
    pub gate: Arc<Gate>,
    pub pool: PgPool,
    pub zone: TimeZone,
    pub prepared: Prepared,
    /// Why this version must not go on, should that be found later.
    pub refused: oneshot::Receiver<ServeError>,
    pub rabbitmq_connected: Option<Arc<AtomicBool>>,
}

impl Listening<'_> {
    /// Listens on both ports until it is to stop and [`Serve::drain`] has passed.
    pub async fn run(self, stopping: Stopping, ready: oneshot::Sender<Addresses>) -> Result<(), ServeError> {
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
        let health = Health::new(self.verifier.is_some());
        let looking = Arc::clone(&health).look_on(Arc::clone(&self.gate), truth.clone(), closing.clone());
        servers.spawn("readiness", looking);
        let prepared = self.prepared;
        let ops = Ops {
            health,
            waits_for: Box::new(move || prepared.trouble()),
            metrics: self.metrics.clone(),
            sampled: Arc::clone(&sampled),
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
                turns: Turns::new(&settings.limits, settings.request_timeout()),
                edge: Edge { cors_origins: settings.cors_origins.clone(), tls: self.tls.is_some() },
                product_pages: http::RenderedPages::default(),
                refresh_popular: refresher(self.pool, self.zone),
                rabbitmq_connected: self.rabbitmq_connected,
            };
            let losses = losses::watch(Arc::clone(&api.gate), api.truth.clone(), closing.clone());
            servers.spawn("the watch for losses", losses);
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
        let meters = OwnThread::start("rushgate-meters", FOLLOWERS_NICENESS)?;
        let upkeep = telemetry::metrics::upkeep(self.metrics, closing.clone());
        servers.spawn_on("metrics", upkeep, meters.runtime());
        servers.spawn("figures", sampler.run(sampled, closing.clone()));
        let roles: Vec<&str> = settings.roles.iter().map(|role| role.name()).collect();
        let api = addresses.api.map(tracing::field::display);
        tracing::info!(api, ops = %addresses.ops, roles = roles.join(","), "serving");
        let _ = ready.send(addresses); // nobody has to be interested
        let outcome = tokio::select! {
            () = stopping.drained(settings.drain()) => Ok(()),
            ended = servers.one_ends() => Err(ServeError::Ended(ended)),
            Ok(error) = self.refused => {
                tracing::error!(%error, "this instance must not go on, and stops");
                stopping.asked.cancel();
                stopping.drained(settings.drain()).await;
                Err(error)
            }
        };
        closing.cancel();
        tracing::info!("stopping: no new requests; those under way are finished");
        if tokio::time::timeout(SHUTDOWN_TIMEOUT - BACKGROUND_STOP_LIMIT, servers.all_end()).await.is_err() {
            tracing::warn!("requests still under way were cut off");
        }
        outcome
    }
}

/// How an instance is told to stop.
#[derive(Clone, Debug, Default)]
pub struct Stopping {
    /// `/readyz` turns 503, and the ports close after [`Serve::drain`].
    pub asked: CancellationToken,
    /// … or at once.
    pub at_once: CancellationToken,
}

impl From<CancellationToken> for Stopping {
    fn from(asked: CancellationToken) -> Self {
        Self { asked, at_once: CancellationToken::new() }
    }
}

impl Stopping {
    /// Waits until it is asked for, then until balancers of load have had the time to notice.
    async fn drained(&self, drain: Duration) {
        tokio::select! {
            () = self.asked.cancelled() => {}
            () = self.at_once.cancelled() => return self.asked.cancel(),
        }
        if !drain.is_zero() {
            let secs = drain.as_secs();
            tracing::info!(secs, "stopping: /readyz answers 503, and requests are taken for {secs} s more");
            let _ = self.at_once.run_until_cancelled(tokio::time::sleep(drain)).await;
        }
    }
}

fn refresher(pool: PgPool, zone: TimeZone) -> http::RefreshPopular {
    Arc::new(move |now| {
        let (pool, zone) = (pool.clone(), zone.clone());
        // A task of its own: a client that hangs up must not cut a transaction off.
        let made = tokio::spawn(async move { scheduler::refresh_now(&pool, &zone, now).await });
        async move { made.await.map_err(|e| e.to_string())?.map_err(|e| e.to_string()) }.boxed()
    })
}
