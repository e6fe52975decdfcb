//! Batches: one call of a script at a time decides all requests that arrived while the call before was under way.

use rmp::encode as msgpack;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::{mpsc, oneshot};

use super::cell::{Cell, View};
use super::keys::{DAY_MS, Keys};
use super::meters::LaneMeters;
use super::refusal::{GateError, Position};
use super::script::{CallError, Refused, Reply, Script};
use crate::config::bounds::GATE_REPEATS;
use crate::log::wire::{self, Blob};

/// A request on its way to a script.
pub struct Job {
    pub deadline: Instant,
    queued: Instant,
    /// MessagePack `[scope, request hash]`, for deciding scripts.
    pub idempotency: Option<Vec<u8>>,
    /// MessagePack.
    pub body: Vec<u8>,
    answer: oneshot::Sender<Result<(Vec<u8>, Position), GateError>>,
}

/// The bounds of a batcher.
#[derive(Clone, Copy, Debug)]
pub struct BatchLimits {
    /// Requests that may wait.
    pub queue: usize,
    /// Requests per call.
    pub batch: usize,
    /// Entries that PostgreSQL may be behind.
    pub log: u64,
}

/// The queue of one script in one cell.
pub struct Batcher {
    queue: mpsc::Sender<Job>,
    pub script: &'static Script,
    pub meters: Arc<LaneMeters>,
}

impl Batcher {
    pub fn start(
        cell: Arc<Cell>,
        script: &'static Script,
        limits: BatchLimits,
        meters: Arc<LaneMeters>,
    ) -> Self {
        let (queue, jobs) = mpsc::channel(limits.queue);
        tokio::spawn(Worker { cell, script, limits, meters: Arc::clone(&meters) }.run(jobs));
        Self { queue, script, meters }
    }

    /// Requests that wait.
    pub fn waiting(&self) -> usize {
        self.queue.max_capacity() - self.queue.capacity()
    }

    /// The packed verdict (or answer) of one request, and where the log stood after it.
    pub async fn ask(
        &self,
        deadline: Instant,
        idempotency: Option<Vec<u8>>,
        body: Vec<u8>,
    ) -> Result<(Vec<u8>, Position), GateError> {
        let (answer, verdict) = oneshot::channel();
        let job = Job { deadline, queued: Instant::now(), idempotency, body, answer };
        self.queue.try_send(job).map_err(|e| match e {
            mpsc::error::TrySendError::Full(_) => GateError::Overloaded,
            mpsc::error::TrySendError::Closed(_) => GateError::Unavailable("the gate is stopping".into()),
        })?;
        verdict.await.unwrap_or(Err(GateError::OutcomeUnknown))
    }
}

struct Worker {
    cell: Arc<Cell>,
    script: &'static Script,
    limits: BatchLimits,
    meters: Arc<LaneMeters>,
}

/// What to do after a refusal of a whole batch; nothing was changed.
enum Next {
    Repeat,
    GiveUp(GateError),
}

impl Worker {
    async fn run(self, mut jobs: mpsc::Receiver<Job>) {
        let mut batch = Vec::with_capacity(self.limits.batch);
        while jobs.recv_many(&mut batch, self.limits.batch).await > 0 {
            // Nobody waits for these any more, and nothing has been sent: they never happened.
            batch.retain(|job| !job.answer.is_closed());
            let waiting = std::mem::take(&mut batch);
            if !waiting.is_empty() {
                self.decide(waiting).await;
            }
        }
    }

    async fn decide(&self, jobs: Vec<Job>) {
        let mut outcome = Err(GateError::Unavailable("the gate kept refusing".into()));
        for _ in 0..GATE_REPEATS {
            match self.call(&jobs).await {
                Ok(Reply::Decided(decided)) => {
                    outcome = Ok(decided);
                    break;
                }
                Ok(Reply::Refused(refused)) => match self.after_refusal(&refused).await {
                    Next::Repeat => {}
                    Next::GiveUp(error) => {
                        outcome = Err(error);
                        break;
                    }
                },
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
        }
        match outcome {
            Ok(decided) => {
                let place = decided.place;
                let position = Position { cell: self.cell.number, epoch: place.epoch, seq: place.seq };
                let mut verdicts = decided.verdicts.into_iter();
                for job in jobs {
                    let verdict =
                        verdicts.next().map_or(Err(GateError::OutcomeUnknown), |Blob(v)| Ok((v, position)));
                    let _ = job.answer.send(verdict); // the client may have gone meanwhile
                }
            }
            Err(error) => {
                for job in jobs {
                    let _ = job.answer.send(Err(error.clone()));
                }
            }
        }
    }

    async fn call(&self, jobs: &[Job]) -> Result<Reply, GateError> {
        let view = self.cell.view().await?;
        let today = view.now().div_euclid(DAY_MS);
        let vetted = self.vetted().await?;
        let client = if self.script.decides { &self.cell.writer.client } else { &self.cell.reader };
        let keys = self.script.keys(&Keys::new(self.cell.number, view.epoch), today);
        let head = wire::pack(&self.head(&view, today)).map_err(|e| GateError::Unavailable(e.to_string()))?;
        let batch = self.packed(jobs, &view);
        let sent = Instant::now();
        let reply = self.script.call(client, keys, head, batch).await;
        self.meters.called(jobs.iter().map(|job| sent - job.queued), sent.elapsed());
        match reply {
            Ok(reply) => {
                self.cell.learn_from(&reply);
                let decided = matches!(reply, Reply::Decided(_));
                if decided && vetted.is_some_and(|connection| connection != self.cell.writer.connection()) {
                    // It was decided on a connection that nobody has checked: it may not last.
                    return Err(GateError::OutcomeUnknown);
                }
                Ok(reply)
            }
            Err(CallError::NotRun(why)) => Err(GateError::Unavailable(format!("Redis: {why}"))),
            Err(CallError::Unknown(why)) => {
                tracing::warn!(script = self.script.name, why, "no answer from the gate");
                Err(if self.script.decides { GateError::OutcomeUnknown } else { GateError::Unavailable(why) })
            }
            Err(CallError::ScriptFailed(why)) => {
                tracing::error!(script = self.script.name, why, "a script failed");
                if self.script.decides {
                    self.cell.close(view.epoch, &format!("{} failed: {why}", self.script.name)).await;
                    return Err(GateError::OutcomeUnknown);
                }
                // A read changes nothing, but nobody else may ever touch the key that it could not read.
                if why.contains("WRONGTYPE") {
                    self.cell.close(view.epoch, &format!("{} failed: {why}", self.script.name)).await;
                }
                Err(GateError::Unavailable(why))
            }
        }
    }

    /// The connection that a decision will be made on, found to lead to a Redis that keeps it; reads need none.
    async fn vetted(&self) -> Result<Option<u64>, GateError> {
        if !self.script.decides {
            return Ok(None);
        }
        match self.cell.writer.vet().await {
            Ok(connection) => Ok(Some(connection)),
            Err(e) => Err(GateError::Unavailable(e.to_string())),
        }
    }

    /// What the script must know of the caller; reads take the first three.
    fn head<'a>(&self, view: &'a View, today: i64) -> (u64, u64, &'a str, i64, u64) {
        (view.epoch, view.seen_seq, &view.seen_tip, today, self.limits.log)
    }

    fn packed(&self, jobs: &[Job], view: &View) -> Vec<u8> {
        let bytes: usize =
            jobs.iter().map(|j| j.body.len() + j.idempotency.as_ref().map_or(1, Vec::len) + 12).sum();
        let mut out = Vec::with_capacity(bytes + 5);
        // Writing to a Vec cannot fail.
        let _ = msgpack::write_array_len(&mut out, u32::try_from(jobs.len()).unwrap_or(u32::MAX));
        for job in jobs {
            if self.script.decides {
                let _ = msgpack::write_array_len(&mut out, 3);
                let _ = msgpack::write_sint(&mut out, view.server_time(job.deadline));
                match &job.idempotency {
                    Some(key) => out.extend_from_slice(key),
                    None => {
                        let _ = msgpack::write_nil(&mut out);
                    }
                }
            }
            out.extend_from_slice(&job.body);
        }
        out
    }

    async fn after_refusal(&self, refused: &Refused) -> Next {
        let unavailable = |why: &str| Next::GiveUp(GateError::Unavailable(why.into()));
        match refused.why.as_str() {
            // `learn_from` has taken over the new epoch or the clock
            "day" => Next::Repeat,
            "epoch" => {
                let known = self.cell.view().await.map_or(0, |view| view.epoch);
                if known > refused.place.epoch {
                    self.cell.close(refused.place.epoch, "Redis went back to an earlier epoch").await;
                    return unavailable(
                        "Redis went back to an earlier epoch; the reconciler rebuilds the gate",
                    );
                }
                Next::Repeat
            }
            "backlog" => Next::GiveUp(GateError::BacklogFull),
            "absent" => unavailable("Redis holds no gate; the reconciler builds it"),
            "behind" => {
                self.cell.close(refused.place.epoch, "Redis went back in time").await;
                unavailable("Redis went back in time; the reconciler rebuilds the gate")
            }
            "log-gone" => {
                self.cell.close(refused.place.epoch, "the log is gone").await;
                unavailable("the log is gone; the reconciler rebuilds the gate")
            }
            _ => unavailable("the cell is closed; the reconciler verifies it"),
        }
    }
}
