//! Samples state every few seconds: cells, outbox, templates, pools, this process. Each round's
//! text replaces the one before, so that a value which can no longer be read disappears instead of
//! going stale.
//!
//! [`Sampler::run`] writes each round's text to a [`Sampled`], and `/metrics` appends it to the
//! counters. It does not sample when it is scraped, so that a hanging server delays no scrape.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sqlx::PgPool;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::config::bounds::{
    METRICS_SAMPLE, METRICS_TEMPLATE_PAGES, METRICS_TEMPLATES, METRICS_TEMPLATES_SCAN,
};
use crate::domain::{CouponTemplate, TemplateId};
use crate::gate::observe::{CellSample, RedisSample};
use crate::gate::{Gate, WriteRefusal};
use crate::telemetry::exposition::Exposition;
use crate::telemetry::metrics::*;
use crate::telemetry::process;
use crate::telemetry::sampled::Sampled;
use crate::truth::{Truth, Vitals};

/// The states of a cell; see [`CELL_STATE`].
const CELL_STATES: [&str; 4] = ["open", "closed", "rebuilding", "absent"];
/// Time limit of each call to Redis in a round.
const PATIENCE: Duration = Duration::from_secs(3);

/// The sources of the samples.
pub struct Sampler {
    pub gate: Arc<Gate>,
    pub truth: Truth,
    /// Connection pools by their use.
    pub pools: Vec<(&'static str, PgPool)>,
    /// As in [`crate::http::Api`].
    pub rabbitmq_connected: Option<Arc<AtomicBool>>,
    pub log_limit: u64,
    pub queue_limit: u32,
}

/// The templates that were open at the last full scan.
#[derive(Default)]
struct Templates {
    open: Vec<TemplateId>,
    scanned: Option<Instant>,
}

impl Sampler {
    /// Samples until `stopping`.
    pub async fn run(self, sampled: Arc<Sampled>, stopping: CancellationToken) {
        let mut ticks = tokio::time::interval(METRICS_SAMPLE);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut templates = Templates::default();
        while stopping.run_until_cancelled(ticks.tick()).await.is_some() {
            let sample = Box::pin(self.sample(&mut templates));
            let Some(text) = stopping.run_until_cancelled(sample).await else { return };
            sampled.replace(text);
        }
    }

    async fn sample(&self, templates: &mut Templates) -> String {
        let redis = async {
            let cells = timeout(PATIENCE, self.gate.observe()).await.ok()?.ok()?;
            let server = timeout(PATIENCE, self.gate.observe_redis()).await.ok().flatten();
            let open = timeout(PATIENCE, templates.look(&self.gate)).await.ok().flatten();
            Some((cells, server, open))
        };
        let (redis, vitals) = futures::join!(redis, self.truth.vitals());
        let mut out = Exposition::default();
        let rabbitmq =
            self.rabbitmq_connected.as_ref().map(|on| ("rabbitmq", on.load(Ordering::Relaxed)));
        let connected =
            [("redis", redis.is_some()), ("postgres", vitals.is_ok())].into_iter().chain(rabbitmq);
        out.put_all(&CONNECTED, connected.map(|(server, on)| ([server], flag(on))));
        let (cells, server, open) = redis.unwrap_or_default();
        let vitals = vitals.ok();
        expose_cells(&mut out, &cells);
        expose_redis(&mut out, &server.unwrap_or_default());
        expose_templates(&mut out, &open.unwrap_or_default());
        if let Some(vitals) = &vitals {
            expose_truth(&mut out, vitals);
        }
        self.expose_own(&mut out);
        process::expose(&mut out);
        out.into_text()
    }

    /// Values that this process knows without asking a server.
    fn expose_own(&self, out: &mut Exposition) {
        out.put_all(
            &GATE_QUEUE,
            self.gate.queues().map(|(script, waiting)| ([script], waiting as f64)),
        );
        out.put(&GATE_QUEUE_LIMIT, f64::from(self.queue_limit));
        out.put(&LOG_LIMIT, self.log_limit as f64);
        out.put_all(&BUILD_INFO, [([env!("CARGO_PKG_VERSION")], 1.0)]);
        let connections = self.pools.iter().flat_map(|(name, pool)| {
            let idle = pool.num_idle().min(pool.size() as usize) as f64;
            [([*name, "idle"], idle), ([*name, "used"], f64::from(pool.size()) - idle)]
        });
        out.put_all(&POOL_CONNECTIONS, connections);
        let limit = |pool: &PgPool| f64::from(pool.options().get_max_connections());
        out.put_all(&POOL_LIMIT, self.pools.iter().map(|(name, pool)| ([*name], limit(pool))));
    }
}

impl Templates {
    async fn look(&mut self, gate: &Gate) -> Option<Vec<CouponTemplate>> {
        if self.scanned.is_none_or(|at| at.elapsed() > METRICS_TEMPLATES_SCAN) {
            self.open =
                gate.open_templates(METRICS_TEMPLATES, METRICS_TEMPLATE_PAGES).await.ok()?;
            self.scanned = Some(Instant::now());
        }
        gate.still_open(&self.open).await.ok()
    }
}

fn expose_cells(out: &mut Exposition, cells: &[CellSample]) {
    let names: Vec<String> = cells.iter().map(|sample| sample.status.cell.to_string()).collect();
    let by_cell = |figure: fn(&CellSample) -> f64| {
        names.iter().zip(cells).map(move |(name, sample)| ([name.as_str()], figure(sample)))
    };
    let states = names.iter().zip(cells).flat_map(|(name, sample)| {
        CELL_STATES
            .into_iter()
            .map(move |state| ([name.as_str(), state], flag(sample.status.state == state)))
    });
    out.put_all(&CELL_STATE, states);
    let refusals = names.iter().zip(cells).flat_map(|(name, sample)| {
        let now = sample.status.writes_refused;
        WriteRefusal::ALL.map(|why| ([name.as_str(), why.name()], flag(now == Some(why))))
    });
    out.put_all(&REDIS_REFUSES_WRITES, refusals);
    out.put_all(&CELL_EPOCH, by_cell(|sample| sample.status.epoch as f64));
    out.put_all(&LOG_SEQUENCE, by_cell(|sample| sample.status.seq as f64));
    out.put_all(&LOG_APPLIED, by_cell(|sample| sample.status.applied as f64));
    out.put_all(
        &LOG_LAG,
        by_cell(|sample| sample.status.seq.saturating_sub(sample.status.applied) as f64),
    );
    out.put_all(&LOG_LAG_SECONDS, by_cell(|sample| sample.behind.as_secs_f64()));
    out.put_all(&LOG_LENGTH, by_cell(|sample| sample.log_length as f64));
    out.put_all(&PENDING_ORDERS, by_cell(|sample| sample.pending_orders as f64));
}

fn expose_redis(out: &mut Exposition, sample: &RedisSample) {
    for (metric, figure) in [
        (&REDIS_MEMORY, sample.used_memory),
        (&REDIS_MAX_MEMORY, sample.max_memory),
        (&REDIS_CLIENTS, sample.clients),
        (&REDIS_COMMANDS, sample.commands),
        (&REDIS_REPLICAS, sample.replicas),
        (&REDIS_AOF_OK, sample.aof_ok.map(u64::from)),
    ] {
        if let Some(figure) = figure {
            out.put(metric, figure as f64);
        }
    }
}

fn expose_templates(out: &mut Exposition, open: &[CouponTemplate]) {
    let by_template = |figure: fn(&CouponTemplate) -> u64| {
        open.iter().map(move |template| ([template.template_id.as_str()], figure(template) as f64))
    };
    out.put_all(&TEMPLATE_ISSUED, by_template(|template| template.issued));
    out.put_all(&TEMPLATE_REMAINING, by_template(CouponTemplate::remaining));
    out.put_all(&TEMPLATE_LIMIT, by_template(|template| template.max_issued));
}

fn expose_truth(out: &mut Exposition, vitals: &Vitals) {
    out.put(&OUTBOX_ROWS, vitals.progress.outbox_length as f64);
    out.put(&OUTBOX_AGE, vitals.outbox_oldest.as_secs_f64());
    if let Some(at_ms) = vitals.popular_refreshed {
        out.put(&POPULAR_REFRESHED, at_ms as f64 / 1_000.0);
    }
    let names: Vec<String> =
        vitals.progress.cursors.iter().map(|cursor| cursor.cell.to_string()).collect();
    let halted = names.iter().zip(&vitals.progress.cursors);
    let halted =
        halted.map(|(name, cursor)| ([name.as_str()], flag(cursor.halted_reason.is_some())));
    out.put_all(&RECONCILER_HALTED, halted);
}

fn flag(on: bool) -> f64 {
    if on { 1.0 } else { 0.0 }
}
