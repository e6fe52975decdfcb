//! Every metric of Rushgate: its name, kind, labels and meaning. docs/operations.md has the same
//! table; a test compares them.
//!
//! Labels have few values, all known in advance; `src/serve/sampler.rs` bounds the number
//! of templates. Ids of users, orders, coupons or requests are never labels.

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use tokio_util::sync::CancellationToken;

use crate::config::bounds::METRICS_UPKEEP;

/// A metric's kind, as Prometheus names it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Counter,
    Gauge,
    /// With the upper bounds of its buckets.
    Histogram(&'static [f64]),
}

#[derive(Clone, Copy, Debug)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram(_) => "histogram",
        }
    }
}

/// Seconds, from a gate call in memory to the longest time limits.
const SHORT: Kind = Kind::Histogram(&[
    0.000_5, 0.001, 0.002, 0.003, 0.005, 0.007_5, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
    2.5, 5.0, 10.0,
]);
/// Seconds, for jobs that are done as a whole.
const LONG: Kind =
    Kind::Histogram(&[0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0]);
/// Items in a batch.
const PIECES: Kind =
    Kind::Histogram(&[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1_024.0]);

macro_rules! metrics {
    ($($id:ident $kind:expr, $name:literal [$($label:literal)*] $help:literal)+) => {
        $(pub const $id: Metric = Metric { name: $name, kind: $kind, labels: &[$($label),*], help: $help };)+
        pub const ALL: &[Metric] = &[$($id),+];
    };
}

use Kind::{Counter, Gauge};
metrics! {
    HTTP_REQUESTS Counter, "rushgate_http_requests_total" ["route" "method" "status" "code"]
        "Requests answered, by route, status and refusal code (empty: no refusal)"
    HTTP_DURATION SHORT, "rushgate_http_request_duration_seconds" ["route" "method"]
        "Time from a request's headers to its answer"
    HTTP_IN_FLIGHT Gauge, "rushgate_http_requests_in_flight" []
        "Requests being worked on"

    LIVE_STREAMS Gauge, "rushgate_live_streams" []
        "Live streams that are open"
    LIVE_WATCHED Gauge, "rushgate_live_watched_ids" []
        "Different products and templates that they watch"
    LIVE_EVENTS Counter, "rushgate_live_events_total" ["event"]
        "Events sent to live streams: snapshot, product, template, unavailable, available"
    LIVE_SAMPLES Counter, "rushgate_live_samples_total" ["outcome"]
        "Reads of the gate for live streams: read, failed, skipped (too many reads were waiting)"

    GATE_REQUESTS Counter, "rushgate_gate_requests_total" ["script" "verdict"]
        "Requests to a script, by what became of them: accepted, replayed, a refusal of the shop, or why there is no verdict"
    GATE_REMEMBERED Counter, "rushgate_gate_sold_out_remembered_total" ["script"]
        "Requests refused as sold out from memory, without asking the gate"
    GATE_CALL SHORT, "rushgate_gate_call_duration_seconds" ["script"]
        "Round trip of one script call, with the fsync in it"
    GATE_BATCH PIECES, "rushgate_gate_batch_requests" ["script"]
        "Requests decided by one script call"
    GATE_WAIT SHORT, "rushgate_gate_queue_wait_seconds" ["script"]
        "Time that a request waited for its batch to be sent"
    GATE_QUEUE Gauge, "rushgate_gate_queue_requests" ["script"]
        "Requests waiting for a script"
    GATE_QUEUE_LIMIT Gauge, "rushgate_gate_queue_limit" []
        "Requests that may wait for one script (RUSHGATE_QUEUE_LIMIT)"

    CELL_STATE Gauge, "rushgate_cell_state" ["cell" "state"]
        "1 for the state that the cell is in: open, closed, rebuilding, absent"
    CELL_EPOCH Gauge, "rushgate_cell_epoch" ["cell"]
        "The cell's epoch; one more with each rebuild"
    CELL_CLOSES Counter, "rushgate_cell_closes_total" ["cell"]
        "Times that this instance closed the cell"
    CELL_FENCED Gauge, "rushgate_cell_fenced" ["cell"]
        "1 while this instance may not decide because PostgreSQL names another epoch or Redis than it reaches"
    CLOCK_AHEAD Gauge, "rushgate_clock_ahead_seconds" ["cell"]
        "The gate's clock less this instance's, when the gate last answered"
    LOG_SEQUENCE Gauge, "rushgate_log_sequence" ["cell"]
        "Number of the log's last entry"
    LOG_APPLIED Gauge, "rushgate_log_applied_sequence" ["cell"]
        "Watermark: number of the last entry that PostgreSQL has"
    LOG_LAG Gauge, "rushgate_log_lag_entries" ["cell"]
        "Entries that PostgreSQL is behind"
    LOG_LAG_SECONDS Gauge, "rushgate_log_lag_seconds" ["cell"]
        "Age of the oldest entry that PostgreSQL does not have; 0 when it has all"
    PENDING_ORDERS Gauge, "rushgate_pending_orders" ["cell"]
        "Orders that wait for a payment outside"
    LOG_LIMIT Gauge, "rushgate_log_limit_entries" []
        "Entries that PostgreSQL may be behind before the gate refuses (RUSHGATE_LOG_LIMIT)"
    LOG_LENGTH Gauge, "rushgate_log_length_entries" ["cell"]
        "Entries in Redis, applied ones that are kept included"

    RECONCILER_LEADING Gauge, "rushgate_reconciler_leading" ["cell"]
        "1 when this instance leads the cell's reconciler"
    RECONCILER_HALTED Gauge, "rushgate_reconciler_halted" ["cell"]
        "1 when PostgreSQL refused an entry and the cell waits for an operator"
    RECONCILER_HALTS Counter, "rushgate_reconciler_halts_total" []
        "Times that a reconciler halted"
    RECONCILER_ENTRIES Counter, "rushgate_reconciler_entries_total" []
        "Entries applied to PostgreSQL"
    RECONCILER_BATCH PIECES, "rushgate_reconciler_batch_entries" []
        "Entries applied in one transaction"
    RECONCILER_DURATION SHORT, "rushgate_reconciler_batch_duration_seconds" []
        "Time of one applying transaction"
    HOUSEKEEPING_FAILURES Counter, "rushgate_housekeeping_failures_total" ["what"]
        "Rounds of housekeeping that failed: old epochs and old records in Redis, old records in PostgreSQL"
    WALLET_WON Counter, "rushgate_wallet_won_total" ["kind"]
        "Won moved in applied entries: charge, payment, refund"
    REBUILDS Counter, "rushgate_rebuilds_total" []
        "Rebuilds of a gate from PostgreSQL"
    REBUILD_DURATION LONG, "rushgate_rebuild_duration_seconds" []
        "Time from a rebuild's claim to the open gate"
    HOLDS_EXPIRED Counter, "rushgate_holds_expired_total" []
        "Pending orders that were not paid in time: what they held was given back"
    LATE_CONFIRMS Counter, "rushgate_late_confirms_total" []
        "Confirmations that came after the end of the hold: the payment outside is to be given back"
    CONFIRM_DELAY LONG, "rushgate_confirm_delay_seconds" []
        "Time from placing an order that is paid outside to its confirmation"
    DECISIONS_LOST Counter, "rushgate_decisions_lost_total" ["kind"]
        "Decisions that were answered and that PostgreSQL will never have: lost by Redis as this instance remembers, or left out by a rebuild or by log skip"

    OUTBOX_ROWS Gauge, "rushgate_outbox_rows" []
        "Events waiting in the outbox"
    OUTBOX_AGE Gauge, "rushgate_outbox_oldest_age_seconds" []
        "Age of the oldest event in the outbox; 0 when it is empty"
    RELAY_LEADING Gauge, "rushgate_relay_leading" []
        "1 when this instance's relay publishes"
    RELAY_CONNECTED Gauge, "rushgate_relay_connected" []
        "1 when this instance's relay delivers to RabbitMQ"
    RELAY_PUBLISHED Counter, "rushgate_relay_published_total" []
        "Events sent to RabbitMQ, repeats included"
    RELAY_CONFIRMED Counter, "rushgate_relay_confirmed_total" []
        "Events that RabbitMQ confirmed"
    RELAY_REFUSED Counter, "rushgate_relay_refused_total" ["reason"]
        "Events that RabbitMQ did not take; they stay in the outbox"
    RELAY_PUBLISH SHORT, "rushgate_relay_publish_duration_seconds" []
        "Time to hand a window of events to RabbitMQ"
    RELAY_CONFIRM SHORT, "rushgate_relay_confirm_duration_seconds" []
        "Time from there to the window's last confirm"
    RABBITMQ_MESSAGES Gauge, "rushgate_rabbitmq_queue_messages" ["queue"]
        "Messages ready in a queue, as the publishing relay sees it"
    RABBITMQ_CONSUMERS Gauge, "rushgate_rabbitmq_queue_consumers" ["queue"]
        "Consumers of a queue"

    POPULAR_REFRESHED Gauge, "rushgate_popular_refreshed_timestamp_seconds" []
        "When the newest list of popular products was made"
    TEMPLATE_ISSUED Gauge, "rushgate_template_issued" ["template"]
        "Coupons issued, for templates inside their issuing window (at most 50)"
    TEMPLATE_REMAINING Gauge, "rushgate_template_remaining" ["template"]
        "Coupons left"
    TEMPLATE_LIMIT Gauge, "rushgate_template_limit" ["template"]
        "Coupons that may be issued"

    CONNECTED Gauge, "rushgate_connected" ["server"]
        "1 when this instance reaches redis, postgres, rabbitmq (the last: by its relay, or stands by)"
    POOL_CONNECTIONS Gauge, "rushgate_postgres_pool_connections" ["pool" "state"]
        "Connections to PostgreSQL, used and idle"
    POOL_LIMIT Gauge, "rushgate_postgres_pool_limit" ["pool"]
        "Connections that the pool may open"
    REDIS_MEMORY Gauge, "rushgate_redis_used_memory_bytes" []
        "Memory that Redis uses"
    REDIS_MAX_MEMORY Gauge, "rushgate_redis_max_memory_bytes" []
        "Redis' maxmemory; 0: no limit of its own"
    REDIS_CLIENTS Gauge, "rushgate_redis_clients" []
        "Connections that Redis has"
    REDIS_COMMANDS Counter, "rushgate_redis_commands_total" []
        "Commands that Redis has processed"
    REDIS_REPLICAS Gauge, "rushgate_redis_replicas" []
        "Replicas connected to Redis"
    REDIS_AOF_OK Gauge, "rushgate_redis_aof_write_ok" []
        "1 while Redis' last write to its append-only file succeeded"
    REDIS_REFUSES_WRITES Gauge, "rushgate_redis_refuses_writes" ["cell" "reason"]
        "1 while Redis answers and takes no writes, so that nothing is decided: misconf, oom, readonly, noreplicas"

    ROLE_RESTARTS Counter, "rushgate_role_restarts_total" ["role"]
        "Times that a background role panicked or ended and was started again"
    BUILD_INFO Gauge, "rushgate_build_info" ["version"]
        "1; the version that runs"
    PROCESS_CPU Counter, "process_cpu_seconds_total" []
        "Processor time of this process"
    PROCESS_RESIDENT Gauge, "process_resident_memory_bytes" []
        "Resident memory"
    PROCESS_VIRTUAL Gauge, "process_virtual_memory_bytes" []
        "Virtual memory"
    PROCESS_FDS Gauge, "process_open_fds" []
        "Open file descriptors"
    PROCESS_MAX_FDS Gauge, "process_max_fds" []
        "File descriptors that may be open"
    PROCESS_THREADS Gauge, "process_threads" []
        "Threads"
    PROCESS_START Gauge, "process_start_time_seconds" []
        "When this process began"
}

impl Metric {
    pub fn counter(&self, labels: &[(&'static str, &'static str)]) -> ::metrics::Counter {
        ::metrics::counter!(self.name, labels)
    }

    /// The counter of one cell.
    pub fn counter_of_cell(&self, cell: u32) -> ::metrics::Counter {
        ::metrics::counter!(self.name, "cell" => cell.to_string())
    }

    pub fn gauge_of_cell(&self, cell: u32) -> ::metrics::Gauge {
        ::metrics::gauge!(self.name, "cell" => cell.to_string())
    }

    pub fn gauge(&self, labels: &[(&'static str, &'static str)]) -> ::metrics::Gauge {
        ::metrics::gauge!(self.name, labels)
    }

    pub fn histogram(&self, labels: &[(&'static str, &'static str)]) -> ::metrics::Histogram {
        ::metrics::histogram!(self.name, labels)
    }
}

/// Installs the process's recorder. Call it once, before any handle is created: handles from before
/// count into nothing.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    let mut builder = PrometheusBuilder::new();
    for metric in ALL {
        if let Kind::Histogram(buckets) = metric.kind {
            builder =
                builder.set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), buckets)?;
        }
    }
    let handle = builder.install_recorder()?;
    for metric in ALL {
        match metric.kind {
            Kind::Counter => ::metrics::describe_counter!(metric.name, metric.help),
            Kind::Gauge => ::metrics::describe_gauge!(metric.name, metric.help),
            Kind::Histogram(_) => ::metrics::describe_histogram!(metric.name, metric.help),
        }
    }
    Ok(handle)
}

/// Folds histogram samples until the process stops; without it, memory grows. At full load each
/// round takes milliseconds without yielding, so it belongs on a thread that serves no requests.
pub async fn upkeep(handle: PrometheusHandle, stopping: CancellationToken) {
    let mut ticks = tokio::time::interval(METRICS_UPKEEP);
    while stopping.run_until_cancelled(ticks.tick()).await.is_some() {
        handle.run_upkeep();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_conventions_of_prometheus() {
        for metric in ALL {
            let name = metric.name;
            assert!(name.starts_with("rushgate_") || name.starts_with("process_"), "{name}");
            assert_eq!(
                metric.kind == Counter,
                name.ends_with("_total"),
                "{name}: counters end in _total"
            );
            assert!(!name.contains("_ms") && !name.contains("_kb"), "{name}: base units");
            assert_eq!(ALL.iter().filter(|other| other.name == name).count(), 1, "{name}");
            assert!(!metric.help.ends_with('.') && !metric.help.contains('\n'), "{name}");
        }
    }
}
