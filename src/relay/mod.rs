//! The relay carries events from the outbox to RabbitMQ: in order, at least once.
//!
//! One relay in the cluster publishes. It holds an advisory lock on a PostgreSQL connection of its
//! own, and does all its reading and deleting there. The others stand by. The lock is for order and
//! economy. Two relays at once (a leader that lost its session while publishing) could repeat
//! events, but never lose one or count one twice.
//!
//! A [`Relay::step`] claims the next rows, publishes them (persistent, `mandatory`, with confirms),
//! awaits each confirm, and deletes exactly the confirmed rows.
//!
//! - A PostgreSQL that cannot delete (it is read-only, a right is missing) is detected before
//!   anything is published. The same process never publishes a confirmed event again.
//! - On any doubt the connection to RabbitMQ is dropped, and a later step starts again at the first
//!   row that is left. lapin's own recovery is off.
//! - The outbox is polled ([`bounds::RELAY_POLL`]): reading the head of an index costs less than
//!   the lock that NOTIFY takes in each of the reconciler's commits.

mod broker;
mod metrics;
mod outbox;
mod publish;
pub mod topology;

use sqlx::PgPool;
use std::collections::HashSet;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

pub use broker::BrokerError;
pub use outbox::{OutboxError, OutboxRow};
pub use publish::{Refusal, Refused};

use crate::config::bounds;
use broker::Broker;
use metrics::RelayMetrics;
use outbox::Outbox;
use publish::publish_window;

/// What a step did.
#[derive(Debug, PartialEq, Eq)]
pub enum PublishOutcome {
    /// Another relay publishes.
    StandBy,
    /// The outbox is empty.
    Idle,
    /// Events were sent: `delivered` are confirmed and deleted from the outbox, `refused` are kept.
    Published { delivered: usize, refused: Vec<Refused> },
}

/// Why a step failed. Every undelivered event is still in the outbox.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    #[error(transparent)]
    Outbox(#[from] OutboxError),
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

/// A relay, leading or standing by.
pub struct Relay {
    amqp_url: String,
    pool: PgPool,
    outbox: Option<Outbox>,
    broker: Option<Broker>,
    measured: Option<Instant>,
    /// Events (outbox id, event id) that RabbitMQ has confirmed and PostgreSQL may still hold,
    /// because deleting them failed.
    undeleted: HashSet<(i64, String)>,
    metrics: Arc<RelayMetrics>,
}

impl Relay {
    /// Does not connect yet. `pool` only supplies the address of PostgreSQL.
    pub fn new(amqp_url: impl Into<String>, pool: PgPool) -> Self {
        let metrics = Arc::new(RelayMetrics::new());
        let amqp_url = amqp_url.into();
        Self {
            amqp_url,
            pool,
            outbox: None,
            broker: None,
            measured: None,
            undeleted: HashSet::new(),
            metrics,
        }
    }

    /// Delivers the next events, if this relay leads. It may be dropped at any await; some events
    /// may then be sent again.
    pub async fn step(&mut self) -> Result<PublishOutcome, RelayError> {
        // Taken out of `self` while in use: a step that ends early drops the session, and the lock
        // with it.
        let Some(mut outbox) = self.lead().await? else {
            return Ok(PublishOutcome::StandBy);
        };
        // A step that ends here, because RabbitMQ is away, claims nothing. PostgreSQL would end the
        // leader's idle session, so it gets a statement all the same.
        if self.broker.is_none() {
            outbox.keep().await?;
        }
        let broker = match self.connected().await {
            Ok(broker) => broker,
            Err(error) => {
                self.outbox = Some(outbox); // PostgreSQL works: keep leading
                return Err(error.into());
            }
        };
        self.measure(&broker).await;
        let mut rows = outbox.claim().await?;
        if !self.undeleted.is_empty() {
            self.delete_confirmed(&mut outbox, &mut rows).await?;
        }
        if rows.is_empty() {
            self.broker = Some(broker);
            self.outbox = Some(outbox);
            return Ok(PublishOutcome::Idle);
        }
        let window = publish_window(broker.channel(), &rows).await;
        self.metrics.window(&window);
        if !window.confirmed.is_empty() {
            let confirmed: HashSet<i64> = window.confirmed.iter().copied().collect();
            let names = rows.iter().filter(|row| confirmed.contains(&row.outbox_id));
            self.undeleted = names.map(OutboxRow::name).collect();
            outbox.delivered(&window.confirmed, window.confirmed.len() == rows.len()).await?;
            self.undeleted.clear();
        }
        self.outbox = Some(outbox);
        if let Some(doubt) = window.doubt {
            let blocked = broker.is_blocked();
            return Err(if blocked { BrokerError::Blocked } else { doubt }.into());
        }
        if window.refused.is_empty() {
            self.broker = Some(broker);
        } // else: reconnecting declares queues and bindings again; one may have been deleted
        Ok(PublishOutcome::Published { delivered: window.confirmed.len(), refused: window.refused })
    }

    /// Deletes the events that RabbitMQ has confirmed before, and removes them from `rows`. Both of
    /// their ids must match: PostgreSQL may have been restored from a backup since then, and assign
    /// the same numbers again.
    async fn delete_confirmed(
        &mut self,
        outbox: &mut Outbox,
        rows: &mut Vec<OutboxRow>,
    ) -> Result<(), OutboxError> {
        let (confirmed, rest): (Vec<OutboxRow>, Vec<OutboxRow>) =
            std::mem::take(rows).into_iter().partition(|row| self.undeleted.contains(&row.name()));
        let ids: Vec<i64> = confirmed.iter().map(|row| row.outbox_id).collect();
        outbox.delivered(&ids, false).await?;
        self.undeleted.clear();
        *rows = rest;
        Ok(())
    }

    async fn lead(&mut self) -> Result<Option<Outbox>, OutboxError> {
        match self.outbox.take() {
            Some(outbox) => Ok(Some(outbox)),
            None => Outbox::lead(&self.pool.connect_options()).await,
        }
    }

    /// Connects even if there is nothing to send, so that exchanges and queues exist from the
    /// start.
    async fn connected(&mut self) -> Result<Broker, BrokerError> {
        match self.broker.take() {
            Some(broker) if broker.is_usable() => Ok(broker),
            _ => Broker::connect(&self.amqp_url).await,
        }
    }

    /// Measures the queues, for metrics only: a problem here also shows in the next publish.
    async fn measure(&mut self, broker: &Broker) {
        if self.measured.is_none_or(|at| at.elapsed() >= bounds::RELAY_MEASURE) {
            self.measured = Some(Instant::now());
            for (queue, messages, consumers) in broker.queues().await {
                metrics::seen(queue, f64::from(messages), f64::from(consumers));
            }
        }
    }

    /// Whether this relay holds the lock, as far as it knows.
    pub fn leads(&self) -> bool {
        self.outbox.is_some()
    }

    /// Releases the lock and closes the connections.
    pub async fn stop(mut self) {
        if let Some(broker) = self.broker.take() {
            broker.close().await;
        }
        if let Some(outbox) = self.outbox.take() {
            outbox.resign().await;
        }
    }
}

/// Runs the relay until `shutdown`. After any failure it pauses and retries; other roles are not
/// affected. `connected` tells whether RabbitMQ is connected. A stand-by needs no connection and
/// counts as connected.
pub async fn run(
    amqp_url: &str,
    pool: PgPool,
    connected: Arc<AtomicBool>,
    shutdown: CancellationToken,
) {
    let mut relay = Relay::new(amqp_url, pool);
    let mut health =
        RelayHealth { connected, metrics: Arc::clone(&relay.metrics), state: None, failures: 0 };
    while !shutdown.is_cancelled() {
        let began = Instant::now();
        let outcome = {
            let mut step = pin!(relay.step());
            tokio::select! {
                outcome = &mut step => outcome,
                () = shutdown.cancelled() => {
                    let _ = timeout(bounds::RELAY_STOP_GRACE, step).await;
                    break;
                }
            }
        };
        let pause = health.after(&outcome);
        // The duration of a window counts towards the pause. That of a failure does not: a server
        // that fails slowly needs the full pause, too.
        let pause = if outcome.is_ok() { pause.saturating_sub(began.elapsed()) } else { pause };
        tokio::select! {
            () = sleep(pause) => {}
            () = shutdown.cancelled() => {}
        }
    }
    relay.stop().await;
    health.turn(State::Stopped, "");
}

/// The state of the relay: logs each change once, and lengthens the pause while failures go on.
struct RelayHealth {
    connected: Arc<AtomicBool>,
    metrics: Arc<RelayMetrics>,
    state: Option<State>,
    failures: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    StandBy,
    Delivering,
    Refused,
    NoBroker,
    Misdeclared,
    NoTruth,
    Stopped,
}

impl RelayHealth {
    /// Records the outcome of a step; returns the pause before the next one.
    fn after(&mut self, outcome: &Result<PublishOutcome, RelayError>) -> Duration {
        let (state, detail, pause) = match outcome {
            Ok(PublishOutcome::StandBy) => {
                (State::StandBy, String::new(), bounds::RELAY_STANDBY_POLL)
            }
            Ok(PublishOutcome::Idle) => (State::Delivering, String::new(), bounds::RELAY_POLL),
            Ok(PublishOutcome::Published { delivered, refused }) if refused.is_empty() => {
                // A window costs the same for one event as for many, so events are collected for a
                // while.
                let full = *delivered as i64 >= bounds::RELAY_ROWS;
                (
                    State::Delivering,
                    String::new(),
                    if full { Duration::ZERO } else { bounds::RELAY_POLL },
                )
            }
            Ok(PublishOutcome::Published { refused, .. }) => {
                let first = &refused[0];
                let detail = format!(
                    "{} events, the first is {}: {}",
                    refused.len(),
                    first.event_id,
                    first.why
                );
                (State::Refused, detail, bounds::RELAY_REFUSED_PAUSE)
            }
            Err(RelayError::Broker(error @ BrokerError::DeclaredOtherwise(_))) => {
                (State::Misdeclared, error.to_string(), bounds::RELAY_RETRY_MAX)
            }
            Err(RelayError::Broker(error)) => (State::NoBroker, error.to_string(), self.backoff()),
            Err(RelayError::Outbox(error)) => (State::NoTruth, error.to_string(), self.backoff()),
        };
        self.failures = if outcome.is_err() { self.failures.saturating_add(1) } else { 0 };
        self.turn(state, &detail);
        pause
    }

    fn backoff(&self) -> Duration {
        let doubled = bounds::RELAY_RETRY_FIRST.saturating_mul(1 << self.failures.min(16));
        doubled.min(bounds::RELAY_RETRY_MAX)
    }

    fn turn(&mut self, state: State, detail: &str) {
        let leading = !matches!(state, State::StandBy | State::NoTruth | State::Stopped);
        self.metrics.state(leading, matches!(state, State::Delivering | State::Refused));
        // A failure of PostgreSQL says nothing about RabbitMQ: the last known state stays.
        if state != State::NoTruth {
            let connected = matches!(state, State::StandBy | State::Delivering | State::Refused);
            self.connected.store(connected, Ordering::Relaxed);
        }
        if self.state.replace(state) == Some(state) {
            return;
        }
        match state {
            State::StandBy => info!("relay: another instance publishes the events; standing by"),
            State::Delivering => info!("relay: carrying events to RabbitMQ"),
            State::Refused => {
                error!(detail, "relay: RabbitMQ refused events; they are kept and sent again")
            }
            State::NoBroker => {
                warn!(detail, "relay: RabbitMQ cannot be used; events wait in the outbox")
            }
            State::Misdeclared => {
                error!(
                    detail,
                    "relay: exchanges or queues in RabbitMQ are declared differently; events wait in the outbox"
                )
            }
            State::NoTruth => {
                warn!(detail, "relay: PostgreSQL cannot be used; events wait in the outbox")
            }
            State::Stopped => info!("relay: stopped"),
        }
    }
}

/// However the relay ends, its gauges must not go on claiming that it leads.
impl Drop for RelayHealth {
    fn drop(&mut self) {
        self.metrics.state(false, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_of_postgresql_is_none_of_rabbitmq() {
        let (connected, metrics) = (Arc::new(AtomicBool::new(true)), Arc::new(RelayMetrics::new()));
        let mut health =
            RelayHealth { connected: Arc::clone(&connected), metrics, state: None, failures: 0 };
        let is_connected = || connected.load(Ordering::Relaxed);
        health.after(&Err(RelayError::Outbox(OutboxError::TimedOut(bounds::RELAY_TRUTH_TIMEOUT))));
        assert!(is_connected());
        health.after(&Err(RelayError::Broker(BrokerError::Blocked)));
        assert!(!is_connected());
        health.after(&Err(RelayError::Outbox(OutboxError::TimedOut(bounds::RELAY_TRUTH_TIMEOUT))));
        assert!(!is_connected(), "it was away, and nobody has seen it since");
        health.after(&Ok(PublishOutcome::StandBy));
        assert!(is_connected());
    }

    #[test]
    fn pauses_grow_to_a_bound_and_end_with_the_trouble() {
        let metrics = Arc::new(RelayMetrics::new());
        let mut health =
            RelayHealth { connected: Arc::default(), metrics, state: None, failures: 0 };
        let failed = || Err(RelayError::Broker(BrokerError::Blocked));
        let pauses: Vec<_> = (0..40).map(|_| health.after(&failed())).collect();
        assert_eq!(pauses[0], bounds::RELAY_RETRY_FIRST);
        assert!(pauses.windows(2).all(|pair| pair[0] <= pair[1]));
        assert_eq!(pauses[39], bounds::RELAY_RETRY_MAX);
        assert_eq!(health.after(&Ok(PublishOutcome::Idle)), bounds::RELAY_POLL);
        assert_eq!(health.after(&failed()), bounds::RELAY_RETRY_FIRST);
    }
}
