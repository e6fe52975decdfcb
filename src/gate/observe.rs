//! Reads the state of cells and their Redis for metrics. Changes nothing.

use fred::interfaces::{ClientLike, HashesInterface, StreamsInterface};
use fred::types::InfoKind;
use std::time::{Duration, Instant};

use super::batcher::Batcher;
use super::queries::{fetch, now};
use super::queues::CellQueues;
use super::{CellStatus, Gate, GateError, read};
use crate::domain::limits::MAX_PAGE;
use crate::domain::{CouponTemplate, TemplateId, TimestampMs};
use crate::log::reader::decided_after;
use crate::redis::connect::once;
use crate::redis::keys::Keys;

/// The state of one cell at one moment.
#[derive(Debug)]
pub struct CellSample {
    pub status: CellStatus,
    pub log_length: u64,
    pub pending_orders: u64,
    /// The age of the oldest entry that PostgreSQL has not applied.
    pub behind: Duration,
}

/// Values of Redis' `INFO`; `None` where a value is missing.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct RedisSample {
    pub used_memory: Option<u64>,
    pub max_memory: Option<u64>,
    pub clients: Option<u64>,
    pub commands: Option<u64>,
    pub replicas: Option<u64>,
    pub aof_ok: Option<bool>,
}

impl Gate {
    /// The current state of every cell.
    pub async fn observe(&self) -> Result<Vec<CellSample>, GateError> {
        let mut samples = Vec::with_capacity(self.cells.len());
        for (queues, status) in self.cells.iter().zip(self.status().await?) {
            samples.push(queues.observe(status).await?);
        }
        Ok(samples)
    }

    /// `None`: Redis does not answer `INFO` (a hosted one may forbid it).
    pub async fn observe_redis(&self) -> Option<RedisSample> {
        let reader = &self.cells.first()?.cell.reader;
        // The default sections in one command; naming sections would take one command each.
        let info: String = reader.with_options(&once()).info(Some(InfoKind::Default)).await.ok()?;
        Some(RedisSample::of(&info))
    }

    /// The number of waiting requests, by script.
    pub fn queues(&self) -> impl Iterator<Item = (&'static str, usize)> {
        let queues = self.cells.iter().flat_map(CellQueues::queues);
        queues.map(|queue| (queue.script.name, queue.waiting()))
    }

    /// Up to `limit` templates inside their issuing window, the most recently opened first. Reads
    /// at most `pages` pages.
    pub async fn open_templates(
        &self,
        limit: usize,
        pages: usize,
    ) -> Result<Vec<TemplateId>, GateError> {
        let mut open: Vec<CouponTemplate> = Vec::new();
        let mut after = None;
        for _ in 0..pages {
            let page = self.list_templates(after.as_ref(), MAX_PAGE).await?;
            let Some(last) = page.value.last() else { break };
            after = Some(last.template_id.clone());
            let is_last = page.value.len() < MAX_PAGE;
            open.extend(page.value.into_iter().filter(|template| is_open(template, page.now)));
            if is_last {
                break;
            }
        }
        open.sort_by_key(|template| std::cmp::Reverse(template.issue_from));
        Ok(open.into_iter().take(limit).map(|template| template.template_id).collect())
    }

    /// The templates of `ids` that are inside their issuing window.
    pub async fn still_open(&self, ids: &[TemplateId]) -> Result<Vec<CouponTemplate>, GateError> {
        let mut open = Vec::with_capacity(ids.len());
        for page in ids.chunks(MAX_PAGE) {
            let queues = self.shop_queues();
            let found = fetch(
                queues,
                &("templates", page.iter().map(TemplateId::as_str).collect::<Vec<_>>()),
            )
            .await?;
            let now = now(queues).await?;
            open.extend(
                read::templates(&found)?.into_iter().filter(|template| is_open(template, now)),
            );
        }
        Ok(open)
    }
}

fn is_open(template: &CouponTemplate, now: TimestampMs) -> bool {
    (template.issue_from..template.issue_until).contains(&now)
}

impl CellQueues {
    fn queues(&self) -> [&Batcher; 10] {
        [
            &self.issue_coupon,
            &self.charge_wallet,
            &self.place_order,
            &self.cancel_order,
            &self.confirm_order,
            &self.expire_order,
            &self.put_product,
            &self.adjust_stock,
            &self.put_template,
            &self.read,
        ]
    }

    async fn observe(&self, status: CellStatus) -> Result<CellSample, GateError> {
        let unavailable = |why: String| GateError::Unavailable(format!("Redis: {why}"));
        let (client, cell) = (&self.cell.reader, status.cell);
        let length = client.with_options(&once()).xlen(Keys::new(cell, status.epoch).log()).await;
        let log_length: u64 = length.map_err(|e| unavailable(e.details().to_owned()))?;
        let pending = Keys::new(cell, status.epoch).pending();
        let pending_orders: u64 = client
            .with_options(&once())
            .hlen(pending)
            .await
            .map_err(|e| unavailable(e.details().to_owned()))?;
        let mut behind = Duration::ZERO;
        if status.seq > status.applied {
            let next = decided_after(client, cell, status.epoch, status.applied).await;
            if let Some(decided_at) = next.map_err(|e| unavailable(e.to_string()))? {
                let now = self.cell.view().await?.server_time(Instant::now());
                let ms = now.saturating_sub(decided_at);
                behind = Duration::from_millis(u64::try_from(ms).unwrap_or(0));
            }
        }
        Ok(CellSample { status, log_length, pending_orders, behind })
    }
}

impl RedisSample {
    fn of(info: &str) -> Self {
        let text = |name: &str| {
            info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
        };
        let number = |name: &str| text(name)?.parse().ok();
        Self {
            used_memory: number("used_memory"),
            max_memory: number("maxmemory"),
            clients: number("connected_clients"),
            commands: number("total_commands_processed"),
            replicas: number("connected_slaves"),
            aof_ok: text("aof_last_write_status").map(|status| status == "ok"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redis_is_read_by_whole_names() {
        let info = "# Memory\r\nused_memory_rss:9\r\nused_memory:42\r\nmaxmemory:0\r\naof_last_write_status:err\r\n";
        let sample = RedisSample::of(info);
        assert_eq!((sample.used_memory, sample.max_memory), (Some(42), Some(0)));
        assert_eq!((sample.aof_ok, sample.clients), (Some(false), None));
    }
}
