//! Rebuild: the gate is loaded from PostgreSQL under a new epoch while the old epoch is closed.
//!
//! The order of the steps matters:
//!
//! 1. The claim in Redis closes the cell, and takes the right to open it from every other
//!    rebuilder.
//! 2. The entries that the old log still holds are applied.
//! 3. The cursor moves to the new epoch by compare-and-set. From then on, no entry of the old epoch
//!    can be applied.
//! 4. The keys of the new epoch are loaded.
//! 5. `meta` flips to the new epoch, which opens the cell.
//!
//! A crash anywhere in between leaves the cell closed, and the next step starts a rebuild of its
//! own.

use std::iter;
use std::time::Instant;

use super::cursor::{Cursor, Target};
use super::load::{Loaded, load};
use super::{Reconciler, StepError, StepOutcome, limited};
use crate::config::bounds::FENCE_WAIT;
use crate::log::entry::genesis_tip;
use crate::log::reader::Opening;
use crate::redis::control::{CLAIM_EPOCH, OPEN_EPOCH};
use crate::redis::keys::Keys;
use crate::redis::meta::{Meta, OPEN, OPEN_LATEST};

/// Attempts to claim the cursor while another reconciler moves it.
const CLAIM_ATTEMPTS: u32 = 5;

impl Reconciler {
    /// Rebuilds at an operator's request, whatever the state of the cell.
    pub async fn rebuild_now(&mut self) -> Result<StepOutcome, StepError> {
        let cell = self.cell;
        let mut tried = None;
        loop {
            let cursor = Cursor::read(self.connection().await?, cell).await?;
            let meta = self.log.meta().await?;
            let at = Some((cursor.epoch, cursor.seq, self.bound));
            match self.rebuild(&cursor, &meta, "an operator asked for it").await {
                // Draining took too long: repeat it with smaller transactions as long as that makes
                // progress.
                Err(e) if e.took_too_long() && tried != at => tried = at,
                other => return other,
            }
        }
    }

    /// Rebuilds the gate. `cursor` and `meta` may be out of date by now.
    pub async fn rebuild(
        &mut self,
        cursor: &Cursor,
        meta: &Meta,
        reason: &str,
    ) -> Result<StepOutcome, StepError> {
        let cell = self.cell;
        // The log still holds an entry that PostgreSQL refused, and a rebuild would lose it.
        if let Some(halt) = &cursor.halted_reason
            && !meta.absent()
            && meta.epoch == cursor.epoch
            && !self.tries_halted_again()
        {
            return Ok(self.halted(halt.clone()));
        }
        let epoch = cursor.epoch.max(meta.epoch).max(meta.claim) + 1;
        if cursor.epoch == 0 {
            tracing::info!(cell, epoch, "building the gate for the first time");
        } else {
            tracing::warn!(cell, epoch, reason, "rebuilding the gate from PostgreSQL");
        }
        let started = Instant::now();
        let client = self.log.client.clone();
        let server = self.server_id().await?;
        let claim = iter::once(epoch.to_string()).chain(server.clone()).collect();
        if !CLAIM_EPOCH.call(&client, vec![Keys::meta(cell)], claim).await? {
            return Ok(StepOutcome::Superseded);
        }
        // Another rebuilder may have opened an epoch since `meta` was read. From here on, no
        // rebuilder with an earlier claim can open one.
        let closed = self.log.meta().await?;
        if let Some(stop) = self.drain(&closed).await? {
            return Ok(stop);
        }
        self.report_lost().await?;

        let clock_ms = meta.clock_ms.max(closed.clock_ms);
        let claimed = self.claim_cursor(epoch, clock_ms, server.as_deref()).await?;
        let Some((origin, target, waits)) = claimed else {
            return Ok(StepOutcome::Superseded);
        };
        let moved = Instant::now();
        self.log.unlink_epoch(epoch).await?;
        let keys = Keys::new(cell, epoch);
        let loaded = load(self.connection().await?, &client, &keys, target.clock_ms).await?;
        let named = !waits || self.name_after_wait(&target, moved, server.as_deref()).await?;
        if !named || !self.open(&keys, &origin, &target, &loaded, server).await? {
            // A faster rebuilder may have removed the keys of earlier epochs before the last key of
            // this one was loaded.
            self.log.unlink_epoch(epoch).await?;
            return Ok(StepOutcome::Superseded);
        }
        self.log.unlink_before(epoch).await?;
        self.metrics.rebuilds.increment(1);
        self.metrics.rebuild_duration.record(started.elapsed());
        let fields = loaded.hashes.iter().map(|(_, fields)| *fields).sum::<u64>();
        tracing::info!(cell, epoch, fields, "the gate is open");
        Ok(StepOutcome::Rebuilt(epoch))
    }

    /// Moves the cursor to the beginning of `epoch`. Returns where the cursor stood, where it
    /// stands now, and whether `server` may be named as the gate only after a wait. The wait is
    /// needed if the claim has not closed the gate of the previous epoch: an instance may still be
    /// deciding there, and no server is named until its lease has ended.
    ///
    /// `None`: a rebuilder with a later claim (or with the same one, which Redis has forgotten) was
    /// faster. A rebuilder with an earlier claim is overtaken: it can no longer open the cell.
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
            let target = Target {
                epoch,
                seq: 0,
                tip: genesis_tip(self.cell, epoch),
                clock_ms,
                events: 0,
                format: 0,
            };
            let is_closed =
                drained.epoch == 0 || server.is_some() && drained.gate.as_deref() == server;
            let gate = if is_closed { server } else { Some("") };
            if drained.begin_epoch(self.connection().await?, &target, gate).await? {
                if !is_closed {
                    let (cell, before) = (self.cell, drained.gate.as_deref());
                    tracing::warn!(cell, epoch, wait = ?FENCE_WAIT, before, "another Redis was the gate: opening after a wait");
                }
                return Ok(Some((drained, target, !is_closed)));
            }
        }
        Ok(None)
    }

    /// Names `server` as the gate of the epoch that the cursor entered at `moved`, once every lease
    /// on another server has ended. `false`: the cursor has moved on.
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
            loaded.highest_limit_number.to_string(),
            if loaded.latest_format { OPEN_LATEST } else { OPEN }.to_owned(),
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
