//! Reads what is watched from the gate, for all streams of the instance.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::event::Shown;
use super::table::{Cell, GateState, Key, Live};
use crate::config::bounds::LIVE_SAMPLE;
use crate::domain::{ProductId, TemplateId};
use crate::gate::{Gate, GateError, Watched};

impl Live {
    /// Reads until `stopping`, then ends all streams.
    pub async fn sample(&self, gate: &Gate, stopping: CancellationToken) {
        let _ = stopping.run_until_cancelled(self.sample_on(gate)).await;
        self.stop();
    }

    async fn sample_on(&self, gate: &Gate) {
        loop {
            let begun = Instant::now();
            let batch = self.next_batch();
            if batch.is_empty() {
                self.wanted.notified().await;
                continue;
            }
            self.step(gate, &batch).await;
            tokio::time::sleep_until(begun + LIVE_SAMPLE).await;
        }
    }

    /// Reads one batch.
    async fn step(&self, gate: &Gate, batch: &[Arc<Cell>]) {
        let (products, templates) = ids(batch);
        match gate.watched(&products, &templates).await {
            Ok(read) => {
                self.metrics.read.increment(1);
                let shown = shown(&read);
                let of = |cell: &Arc<Cell>| shown.get(&cell.key).copied();
                self.publish(batch.iter().map(|cell| (cell, of(cell))), read.now);
            }
            // The gate is open; others were before this read.
            Err(GateError::Overloaded) => self.metrics.skipped.increment(1),
            Err(_) => {
                self.metrics.failed.increment(1);
                self.set_gate(GateState::Closed);
            }
        }
    }
}

fn ids(batch: &[Arc<Cell>]) -> (Vec<ProductId>, Vec<TemplateId>) {
    let (mut products, mut templates) = (Vec::new(), Vec::new());
    for cell in batch {
        match &cell.key {
            Key::Product(id) => products.push(id.clone()),
            Key::Template(id) => templates.push(id.clone()),
        }
    }
    (products, templates)
}

fn shown(read: &Watched) -> HashMap<Key, Shown> {
    let products = read.products.iter().map(|product| {
        (Key::Product(product.product_id.clone()), Shown::product(product, read.now))
    });
    let templates = read.templates.iter().map(|template| {
        (Key::Template(template.template_id.clone()), Shown::template(template, read.now))
    });
    products.chain(templates).collect()
}
