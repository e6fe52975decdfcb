//! Batching: each script has a queue, and one call at a time. A call takes all requests that
//! arrived while the previous call was in flight, so that one round trip and one fsync serve many
//! requests.
//!
//! A request becomes a [`Job`] in the queue of its [`Batcher`]. The queue's `Worker` moves jobs to
//! its [`Backlog`], sends a batch to the script, and completes each job with its [`QueueAnswer`].
//! Jobs that the script postpones return to the backlog.

use bytes::Bytes;
use rmp::encode as msgpack;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

use super::backlog::{Backlog, Weight};
use super::batch::{BadBody, Batch};
use super::cell::{CLOCK_AHEAD, Cell, Pass};
use super::fence::Side;
use super::metrics::QueueMetrics;
use super::refusal::GateError;
use super::script::{CallError, Refused, Reply, Script};
use crate::config::bounds::{CLOCK_JUMP_LIMIT, GATE_REPEATS, READS_FEW, READS_GATHER};
use crate::domain::{Position, wire};
use crate::redis::keys::{DAY_MS, Keys};

/// The packed verdict (or read answer) of one request, and the end of the log after it.
pub type QueueAnswer = Result<(Bytes, Position), GateError>;

/// A request for a script.
pub struct Job {
    pub deadline: Instant,
    queued: Instant,
    /// MessagePack `[scope, request hash]`, for deciding scripts.
    pub idempotency: Option<Vec<u8>>,
    /// MessagePack.
    pub body: Vec<u8>,
    /// MessagePack, see [`crate::domain::trace_mark::TraceMark::packed`].
    pub trace: Option<Vec<u8>>,
    /// Its cost within a call.
    pub weight: Weight,
    answer: oneshot::Sender<QueueAnswer>,
}

impl Job {
    /// The caller has dropped the request. It was not executed, so it can be discarded.
    pub fn is_abandoned(&self) -> bool {
        self.answer.is_closed()
    }

    /// Completes the job. The caller may have dropped the request meanwhile.
    pub fn answer(self, answer: QueueAnswer) {
        let _ = self.answer.send(answer);
    }
}

/// The bounds of a batcher.
#[derive(Clone, Copy, Debug)]
pub struct BatchLimits {
    /// The most requests in the queue.
    pub queue: usize,
    /// The most requests per call.
    pub batch: usize,
    /// The most log entries by which PostgreSQL may be behind.
    pub log: u64,
    /// The most idempotency records that one user may create in a day.
    pub keys: u64,
    /// The time limit of a read, including its wait in the queue.
    pub read: Duration,
}

impl Default for BatchLimits {
    /// For tools and tests that use a gate without the service's settings.
    fn default() -> Self {
        Self { queue: 1_000, batch: 128, log: 100_000, keys: 10_000, read: Duration::from_secs(3) }
    }
}

/// The queue of one script in one cell.
pub struct Batcher {
    queue: mpsc::Sender<Job>,
    /// The number of requests taken from the queue that wait in the backlog.
    held_back: Arc<AtomicUsize>,
    pub script: &'static Script,
    pub metrics: Arc<QueueMetrics>,
}

impl Batcher {
    pub fn start(
        cell: Arc<Cell>,
        script: &'static Script,
        limits: BatchLimits,
        metrics: Arc<QueueMetrics>,
    ) -> Self {
        let (queue, jobs) = mpsc::channel(limits.queue);
        let held_back = Arc::<AtomicUsize>::default();
        let worker = Worker {
            cell,
            script,
            limits,
            metrics: Arc::clone(&metrics),
            held_back: Arc::clone(&held_back),
        };
        tokio::spawn(worker.run(jobs));
        Self { queue, held_back, script, metrics }
    }

    /// The number of requests that wait in the queue or the backlog.
    pub fn waiting(&self) -> usize {
        self.queue.max_capacity() - self.queue.capacity() + self.held_back.load(Ordering::Relaxed)
    }

    /// Queues one request and waits for its packed verdict (or read answer) and the end of the log
    /// after it. `lines` are those of an order; 1 for every other request.
    pub async fn ask(
        &self,
        deadline: Instant,
        idempotency: Option<Vec<u8>>,
        body: Vec<u8>,
        trace: Option<Vec<u8>>,
        lines: usize,
    ) -> Result<(Bytes, Position), GateError> {
        let (answer, verdict) = oneshot::channel();
        let weight = Weight { lines, held_bytes: 0 };
        let job =
            Job { deadline, queued: Instant::now(), idempotency, body, trace, weight, answer };
        self.queue.try_send(job).map_err(|e| match e {
            mpsc::error::TrySendError::Full(_) => GateError::Overloaded,
            mpsc::error::TrySendError::Closed(_) => {
                GateError::Unavailable("the gate is stopping".into())
            }
        })?;
        verdict.await.unwrap_or(Err(GateError::OutcomeUnknown))
    }
}

struct Worker {
    cell: Arc<Cell>,
    script: &'static Script,
    limits: BatchLimits,
    metrics: Arc<QueueMetrics>,
    held_back: Arc<AtomicUsize>,
}

/// The traces of the requests, as one MessagePack list; `None` if no request has one.
fn traces(jobs: &[Job]) -> Option<Vec<u8>> {
    let traced = jobs.iter().filter_map(|job| job.trace.as_ref());
    let count = u32::try_from(traced.clone().count()).ok().filter(|count| *count > 0)?;
    let mut out = Vec::with_capacity(traced.clone().map(Vec::len).sum::<usize>() + 5);
    let _ = msgpack::write_array_len(&mut out, count); // writing to a Vec cannot fail
    traced.for_each(|trace| out.extend_from_slice(trace));
    Some(out)
}

/// Groups identical reads of a batch. Each distinct read is sent once, and all jobs in its group
/// get the answer.
struct Same {
    /// Per job, the index of its answer; empty if all reads are distinct.
    place: Vec<usize>,
    /// Per job, whether it is the first with this read.
    first: Vec<bool>,
    repeats: usize,
}

impl Same {
    fn none() -> Self {
        Self { place: vec![], first: vec![], repeats: 0 }
    }

    fn among(jobs: &[Job]) -> Self {
        let mut known: HashMap<&[u8], usize> = HashMap::with_capacity(jobs.len());
        let mut same = Self { place: Vec::with_capacity(jobs.len()), first: vec![], repeats: 0 };
        for job in jobs {
            let next = known.len();
            let place = *known.entry(&job.body).or_insert(next);
            same.place.push(place);
            same.first.push(place == next);
        }
        same.repeats = jobs.len() - known.len();
        if same.repeats == 0 { Self::none() } else { same }
    }

    fn is_first(&self, job: usize) -> bool {
        self.first.get(job).copied().unwrap_or(true)
    }

    /// One answer per job.
    fn spread(&self, answers: Vec<Bytes>) -> Vec<Bytes> {
        if self.repeats == 0 {
            return answers;
        }
        self.place.iter().map_while(|place| answers.get(*place).cloned()).collect()
    }
}

/// The distinct reads, as one MessagePack list.
fn reads(jobs: &[Job], same: &Same) -> Vec<u8> {
    let mut out = Vec::with_capacity(jobs.iter().map(|job| job.body.len()).sum::<usize>() + 5);
    let asked = jobs.len() - same.repeats;
    // Writing to a Vec cannot fail.
    let _ = msgpack::write_array_len(&mut out, u32::try_from(asked).unwrap_or(u32::MAX));
    for (i, job) in jobs.iter().enumerate() {
        if same.is_first(i) {
            out.extend_from_slice(&job.body);
        }
    }
    out
}

/// The latest time that Redis' clock may show: this machine's clock plus the allowed difference.
fn latest_clock() -> i64 {
    jiff::Timestamp::now().as_millisecond() + CLOCK_JUMP_LIMIT.as_millis() as i64
}

/// The next step after the gate has refused a whole batch, without any change.
enum Next {
    Repeat,
    GiveUp(GateError),
}

/// Whether the next call of a read script should be delayed, so that more reads join it. `asked`:
/// the reads of the previous call; `waiting`: those in the queue; `most`: those that fit into one
/// call.
///
/// A deciding call takes as long as an fsync, and many requests arrive meanwhile. A reading call is
/// so fast that, without the delay, each call would carry only a few reads, and Redis and this
/// instance would spend most of their time on the overhead of calls.
fn reads_gather(asked: usize, waiting: usize, most: usize) -> bool {
    asked >= READS_FEW && waiting < most
}

impl Worker {
    async fn run(self, mut jobs: mpsc::Receiver<Job>) {
        let mut backlog = Backlog::new(self.limits);
        while backlog.fill(&mut jobs).await {
            if !self.script.decides {
                backlog.drop_late(Instant::now());
            }
            let batch = backlog.next_batch();
            self.held_back.store(backlog.len(), Ordering::Relaxed);
            if batch.is_empty() {
                continue;
            }
            let (asked, begun) = (batch.len(), Instant::now());
            backlog.ask_again(self.decide(batch).await);
            if !self.script.decides && reads_gather(asked, jobs.len(), self.limits.batch) {
                tokio::time::sleep_until((begun + READS_GATHER).into()).await;
            }
        }
    }

    /// Sends one batch and completes its jobs. Returns the postponed jobs, in their order.
    async fn decide(&self, jobs: Vec<Job>) -> Vec<Job> {
        let same = if self.script.decides { Same::none() } else { Same::among(&jobs) };
        let mut outcome = Err(GateError::Unavailable("the gate kept refusing".into()));
        for _ in 0..GATE_REPEATS {
            match self.call(&jobs, &same).await {
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
        let mut again = Vec::new();
        match outcome {
            Ok(decided) => {
                let place = decided.place;
                let position =
                    Position { cell: self.cell.number, epoch: place.epoch, seq: place.seq };
                let mut verdicts = same.spread(decided.verdicts).into_iter();
                for mut job in jobs {
                    let verdict = verdicts.next();
                    match verdict.as_deref().and_then(|verdict| self.script.to_ask_again(verdict)) {
                        Some(held_bytes) => {
                            job.weight.held_bytes = held_bytes;
                            again.push(job);
                        }
                        None => {
                            let answer = verdict.map(|verdict| (verdict, position));
                            job.answer(answer.ok_or(GateError::OutcomeUnknown));
                        }
                    }
                }
            }
            Err(error) => jobs.into_iter().for_each(|job| job.answer(Err(error.clone()))),
        }
        again
    }

    async fn call(&self, jobs: &[Job], same: &Same) -> Result<Reply, GateError> {
        let checked = self.checked().await?;
        let pass = self.cell.pass().await?;
        let view = &pass.view;
        let today = view.now().div_euclid(DAY_MS);
        let client = self.cell.client(self.side());
        let keys = self.script.keys(&Keys::new(self.cell.number, view.epoch), today);
        let unsendable =
            |why: String| GateError::Unavailable(format!("cannot pack a batch: {why}"));
        let (shape, batch) = if self.script.decides {
            self.requests(jobs, &pass).map_err(|e| unsendable(e.to_string()))?
        } else {
            ((0, 0), reads(jobs, same))
        };
        let head = self.head(&pass, today, shape).map_err(|e| unsendable(e.to_string()))?;
        let sent = Instant::now();
        let reply = self.script.call_traced(client, keys, head, batch, traces(jobs)).await;
        if self.script.decides {
            let told = match &reply {
                Ok(_) => Ok(()),
                Err(
                    CallError::NotRun(why) | CallError::Unknown(why) | CallError::ScriptFailed(why),
                ) => Err(why.as_str()),
            };
            self.cell.writes.learn(self.cell.number, told);
        }
        self.metrics.called(jobs.iter().map(|job| sent - job.queued), sent.elapsed());
        match reply {
            Ok(reply) => {
                self.cell.heard(self.side(), Ok(()));
                self.cell.learn_from(&reply);
                let decided = matches!(reply, Reply::Decided(_));
                if decided
                    && checked.is_some_and(|connection| connection != self.cell.writer.connection())
                {
                    // The connection changed after the durability check: the decision was made on
                    // a Redis that may lose it.
                    return Err(GateError::OutcomeUnknown);
                }
                if let Reply::Decided(decided) = &reply
                    && decided.place.time > pass.until_ms
                    && Instant::now() < pass.until
                {
                    // Redis' clock has jumped forward since the lease began, so the lease has
                    // already ended on that clock. A new look gives a new lease.
                    self.cell.fence.instance.look().await;
                }
                if decided && self.script.decides && !self.still_counts(&pass).await {
                    return Err(GateError::OutcomeUnknown);
                }
                if let Reply::Refused(Refused { why, place }) = &reply
                    && why == "behind"
                {
                    let seen = (view.seen_seq, view.seen_tip.as_str());
                    self.cell.close_behind(self.side(), place.epoch, seen).await;
                }
                Ok(reply)
            }
            Err(CallError::NotRun(why)) => Err(GateError::Unavailable(format!("Redis: {why}"))),
            Err(CallError::Unknown(why)) => {
                self.cell.heard(self.side(), Err(&why));
                Err(if self.script.decides {
                    GateError::OutcomeUnknown
                } else {
                    GateError::Unavailable(why)
                })
            }
            Err(CallError::ScriptFailed(why)) => {
                tracing::error!(script = self.script.name, why, "a script failed");
                if self.script.decides {
                    self.cell
                        .close(view.epoch, &format!("{} failed: {why}", self.script.name))
                        .await;
                    return Err(GateError::OutcomeUnknown);
                }
                // A read changes nothing. But a key of the wrong type must close the cell here: no
                // deciding script may ever touch that key and notice it.
                if why.contains("WRONGTYPE") {
                    self.cell
                        .close(view.epoch, &format!("{} failed: {why}", self.script.name))
                        .await;
                }
                Err(GateError::Unavailable(why))
            }
        }
    }

    fn side(&self) -> Side {
        if self.script.decides { Side::Writer } else { Side::Reader }
    }

    /// Whether a decision may be returned to the client. If the answer came after the end of the
    /// lease (Redis paused within the script), another Redis may have opened meanwhile: PostgreSQL
    /// is read again first.
    async fn still_counts(&self, pass: &Pass) -> bool {
        if Instant::now() < pass.until {
            return true;
        }
        let fence = &self.cell.fence;
        for _ in 0..GATE_REPEATS {
            if fence.still_counts(Instant::now(), pass.view.epoch, pass.gate.as_deref()) {
                return true;
            }
            fence.instance.look().await;
        }
        fence.still_counts(Instant::now(), pass.view.epoch, pass.gate.as_deref())
    }

    /// The number of the writer's connection, once its Redis has passed the durability check.
    /// `None` for reads, which need no check.
    async fn checked(&self) -> Result<Option<u64>, GateError> {
        if !self.script.decides {
            return Ok(None);
        }
        match self.cell.writer.check().await {
            Ok(connection) => Ok(Some(connection)),
            Err(e) => Err(GateError::Unavailable(e.to_string())),
        }
    }

    /// The script's first argument: what it must know about the caller and the batch.
    fn head(
        &self,
        pass: &Pass,
        today: i64,
        shape: (u32, u8),
    ) -> Result<Vec<u8>, rmp_serde::encode::Error> {
        let Pass { view, gate, .. } = pass;
        let (epoch, seen_seq, seen_tip) = (view.epoch, view.seen_seq, &view.seen_tip);
        if self.script.decides {
            let (BatchLimits { log, keys, .. }, clock) = (self.limits, latest_clock());
            wire::pack(&(
                epoch, seen_seq, seen_tip, today, log, shape.0, shape.1, keys, gate, clock,
            ))
        } else {
            wire::pack(&(epoch, seen_seq, seen_tip, gate))
        }
    }

    /// The script's second argument. The end of the lease caps each request's deadline, so that the
    /// script decides nothing after it.
    fn requests(&self, jobs: &[Job], pass: &Pass) -> Result<((u32, u8), Vec<u8>), BadBody> {
        let bytes = jobs
            .iter()
            .map(|j| j.body.len() + j.idempotency.as_ref().map_or(1, Vec::len) + 9)
            .sum();
        let mut batch = Batch::with_capacity(bytes);
        for job in jobs {
            let deadline_ms = pass.view.server_time(job.deadline).min(pass.until_ms);
            batch.add(deadline_ms, job.idempotency.as_deref(), &job.body)?;
        }
        Ok((batch.shape(), batch.into_bytes()))
    }

    /// The batch reached a server that PostgreSQL did not name as the gate when the instance last
    /// looked. Looks again, and repeats the batch if PostgreSQL now names another server.
    async fn after_elsewhere(&self, epoch: u64) -> Next {
        let fence = &self.cell.fence;
        let before = fence.gate_of(epoch);
        fence.leads(self.side(), true);
        fence.instance.look().await;
        if fence.gate_of(epoch) != before {
            return Next::Repeat;
        }
        Next::GiveUp(GateError::Unavailable(
            "PostgreSQL names another Redis as the cell's gate".into(),
        ))
    }

    async fn after_refusal(&self, refused: &Refused) -> Next {
        let unavailable = |why: &str| Next::GiveUp(GateError::Unavailable(why.into()));
        match refused.why.as_str() {
            // `learn_from` has already taken the new clock or epoch from the refusal.
            "day" => Next::Repeat,
            "epoch" => {
                let known = self.cell.view().await.map_or(0, |view| view.epoch);
                if known > refused.place.epoch {
                    self.cell
                        .close(refused.place.epoch, "Redis went back to an earlier epoch")
                        .await;
                    return unavailable(
                        "Redis went back to an earlier epoch; the reconciler rebuilds the gate",
                    );
                }
                Next::Repeat
            }
            "backlog" => Next::GiveUp(GateError::BacklogFull),
            "absent" => unavailable("Redis holds no gate; the reconciler builds it"),
            "behind" => unavailable("Redis went back in time; the reconciler rebuilds the gate"),
            "clock" => unavailable(CLOCK_AHEAD),
            "elsewhere" => self.after_elsewhere(refused.place.epoch).await,
            "log-gone" => {
                self.cell.close(refused.place.epoch, "the log is gone").await;
                unavailable("the log is gone; the reconciler rebuilds the gate")
            }
            _ => unavailable("the cell is closed; the reconciler verifies it"),
        }
    }
}

#[cfg(test)]
impl Job {
    /// A job and the receiver of its answer.
    pub fn for_tests(body: &[u8], weight: Weight) -> (Self, oneshot::Receiver<QueueAnswer>) {
        let (answer, told) = oneshot::channel();
        let now = Instant::now();
        let body = body.to_vec();
        (
            Self {
                deadline: now,
                queued: now,
                idempotency: None,
                body,
                trace: None,
                weight,
                answer,
            },
            told,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(body: &[u8]) -> Job {
        Job::for_tests(body, Weight::default()).0
    }

    #[test]
    fn reads_that_ask_the_same_are_asked_once_and_all_answered() {
        let same = Same::among(&[b"a", b"b", b"a", b"c", b"b"].map(|body| job(body)));
        let asked: Vec<usize> = (0..5).filter(|i| same.is_first(*i)).collect();
        assert_eq!((asked, same.repeats), (vec![0, 1, 3], 2));
        let answers = [b"A", b"B", b"C"].map(|answer| Bytes::from_static(answer));
        let spread: Vec<u8> =
            same.spread(answers.to_vec()).iter().map(|answer| answer[0]).collect();
        assert_eq!(spread, b"ABACB");
    }

    #[test]
    fn where_all_differ_each_has_its_own_answer() {
        let same = Same::among(&[b"a", b"b"].map(|body| job(body)));
        assert!(same.repeats == 0 && same.is_first(0) && same.is_first(1));
        let answers = vec![Bytes::from_static(&[1]), Bytes::from_static(&[2])];
        assert_eq!(same.spread(answers), [&[1][..], &[2]]);
    }

    #[test]
    fn reads_wait_for_one_another_only_while_there_are_many_and_less_than_a_call_takes() {
        let most = 256;
        assert!(reads_gather(READS_FEW, 0, most) && reads_gather(most, most - 1, most));
        assert!(!reads_gather(READS_FEW - 1, 0, most), "a few");
        assert!(!reads_gather(most, most, most), "the next call is full");
    }
}
