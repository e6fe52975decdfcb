//! Rebuild: the gate is built from PostgreSQL under a new epoch, while the old one is closed.
//!
//! Order matters. The claim in Redis closes the cell and takes the right to open from every other rebuilder; then what
//! the old log still holds is applied; then the cursor moves to the new epoch by compare-and-set, so that no entry of
//! the old one can be applied any more; then the keys are loaded; `meta` flips last. Dying anywhere in between leaves
//! the cell closed, and the next step starts a rebuild of its own.

use std::iter;
use std::time::Instant;

use super::cursor::{Cursor, Target};
use super::load::{Loaded, load};
use super::{Reconciler, Step, StepError, limited};
use crate::config::bounds::FENCE_WAIT;
use crate::gate::cell::Meta;
use crate::gate::keys::Keys;
use crate::gate::script::{CLAIM_EPOCH, OPEN_EPOCH};
use crate::log::entry::genesis_tip;
use crate::log::reader::Opening;

/// How often the cursor is claimed when somebody else moves it.
const CLAIM_ATTEMPTS: u32 = 5;

impl Reconciler {
    /// Rebuilds because an operator asks for it, whatever the state of the cell.
    pub async fn rebuild_now(&mut self) -> Result<Step, StepError> {
        let cell = self.cell;
        let mut tried = None;
        loop {
            let cursor = Cursor::read(self.connection().await?, cell).await?;
            let meta = self.log.meta().await?;
            let at = Some((cursor.epoch, cursor.seq, self.bound));
            match self.rebuild(&cursor, &meta, "asked for by an operator").await {
                // Draining took too long, and goes on in smaller transactions as long as that helps.
                Err(e) if e.took_too_long() && tried != at => tried = at,
                other => return other,
            }
        }
    }

    /// Rebuilds. `cursor` and `meta` are as they were read, and may be out of date by now.
    pub async fn rebuild(&mut self, cursor: &Cursor, meta: &Meta, reason: &str) -> Result<Step, StepError> {
        let cell = self.cell;
        // What the log still holds could not be applied, and a rebuild would lose it.
        if let Some(halt) = &cursor.halted_reason
            && !meta.absent()
            && meta.epoch == cursor.epoch
            && !self.tries_halted_again()
        {
            return Ok(self.halted(halt.clone()));
        }
        let epoch = cursor.epoch.max(meta.epoch).max(meta.claim) + 1;
        if cursor.epoch == 0 {
            tracing::info!(cell, epoch, "builds the gate for the first time");
        } else {
            tracing::warn!(cell, epoch, reason, "rebuilds the gate from PostgreSQL");
        }
        let started = Instant::now();
        let client = self.log.client.clone();
        let server = self.server_id().await?;
        let claim = iter::once(epoch.to_string()).chain(server.clone()).collect();
        if !CLAIM_EPOCH.call(&client, vec![Keys::meta(cell)], claim).await? {
            return Ok(Step::Superseded);
        }
        // Another rebuilder may have opened an epoch since `meta` was read; from here on none with an earlier claim can.
        let closed = self.log.meta().await?;
        if let Some(stop) = self.drain(&closed).await? {
            return Ok(stop);
        }
        self.report_lost().await?;

        let clock_ms = meta.clock_ms.max(closed.clock_ms);
        let claimed = self.claim_cursor(epoch, clock_ms, server.as_deref()).await?;
        let Some((origin, target, waits)) = claimed else {
            return Ok(Step::Superseded);
        };
        let moved = Instant::now();
        self.log.unlink_epoch(epoch).await?;
        let keys = Keys::new(cell, epoch);
        let loaded = load(self.connection().await?, &client, &keys, target.clock_ms).await?;
        let named = !waits || self.name_after_wait(&target, moved, server.as_deref()).await?;
        if !named || !self.open(&keys, &origin, &target, &loaded, server).await? {
            // Who was faster may have removed the keys of earlier epochs before the last of these was loaded.
            self.log.unlink_epoch(epoch).await?;
            return Ok(Step::Superseded);
        }
        self.log.unlink_before(epoch).await?;
        self.meters.rebuilds.increment(1);
        self.meters.rebuild_duration.record(started.elapsed());
        let fields = loaded.hashes.iter().map(|(_, fields)| *fields).sum::<u64>();
        tracing::info!(cell, epoch, fields, "the gate is open");
        Ok(Step::Rebuilt(epoch))
    }

    /// Moves the cursor to the beginning of `epoch`; also returns where it stood. `None`: a rebuilder with a later claim (or
    /// with this one, which Redis has forgotten) was there before. One with an earlier claim is overtaken: it cannot open any
    /// more. Also says whether `server` is to be named as the gate after a wait: where the claim has not closed the gate of
    /// the epoch before, some instance may still be deciding there, and until then nobody is named.
    async fn claim_cursor(
        &mut self,
        epoch: u64,
        clock_ms: i64,
        server: Option<&str>,
    ) -> Result<Option<(Cursor, Target, bool)>, StepError> {
        for _ in 0..CLAIM_ATTEMPTS {
            let drained = self.cursor().await?;
            if drained.epoch >= epoch {
                break;
            }
            let clock_ms = drained.clock_ms.max(clock_ms);
            let target = Target { epoch, seq: 0, tip: genesis_tip(self.cell, epoch), clock_ms, events: 0 };
            let is_closed = drained.epoch == 0 || server.is_some() && drained.gate.as_deref() == server;
            let gate = if is_closed { server } else { Some("") };
            if drained.begin_epoch(self.connection().await?, &target, gate).await? {
                if !is_closed {
                    let (cell, before) = (self.cell, drained.gate.as_deref());
                    tracing::warn!(cell, epoch, wait = ?FENCE_WAIT, before, "another Redis was the gate: opens after a wait");
                }
                return Ok(Some((drained, target, !is_closed)));
            }
        }
        Ok(None)
    }

    /// Names `server` as the gate of the epoch that the cursor was moved to then, once every lease on another is over.
    /// `false`: the cursor has moved on.
    async fn name_after_wait(
        &mut self,
        target: &Target,
        moved: Instant,
        server: Option<&str>,
    ) -> Result<bool, StepError> {
        tokio::time::sleep_until((moved + FENCE_WAIT).into()).await;
        let now = self.cursor().await?;
        if (now.epoch, now.gate.as_deref()) != (target.epoch, Some("")) {
            return Ok(false);
        }
        Ok(limited(now.name_gate(self.connection().await?, server)).await?.is_some())
    }

    async fn open(
        &self,
        keys: &Keys,
        origin: &Cursor,
        target: &Target,
        loaded: &Loaded,
        server: Option<String>,
    ) -> Result<bool, StepError> {
        let mut names = vec![Keys::meta(self.cell), keys.log()];
        let mut args = vec![
            target.epoch.to_string(),
            target.tip.clone(),
            target.clock_ms.to_string(),
            loaded.highest_template_number.to_string(),
            Opening::origin_text(origin.epoch, origin.seq, &origin.tip),
        ];
        for (hash, fields) in &loaded.hashes {
            names.push(hash.clone());
            args.push(fields.to_string());
        }
        args.extend(server);
        Ok(OPEN_EPOCH.call(&self.log.client, names, args).await?)
    }
}
