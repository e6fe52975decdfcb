//! The state of a cell as one instance knows it: its epoch, the highest `seq` seen, the watermark
//! and the gate's clock.
//!
//! A [`Cell`] holds the connections and this state. Every reply of a script updates it
//! ([`Cell::learn_from`]). Before each call, [`Cell::pass`] turns it into a [`Pass`]: a [`View`]
//! for the script and the fence's lease.

use ::metrics::Gauge;
use fred::prelude::*;
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};

use super::fence::{CellFence, Side, Verdict, over};
use super::refusal::{GateError, NotApplied};
use super::script::{CallError, CellState, READ, Refused, Reply};
use super::write_state::WriteState;
use crate::config::bounds::{CLOCK_JUMP_LIMIT, FENCE_CLOCK_AGE, FENCE_LEASE_LEAST, GATE_REPEATS};
use crate::domain::wire;
use crate::domain::{Position, TimestampMs};
use crate::redis::connect::{CheckedConnection, Connections};
use crate::redis::control::PROBE_WRITES;
use crate::redis::keys::Keys;
use crate::redis::meta::{close, close_behind};
use crate::telemetry::metrics;
use crate::telemetry::repeated::Repeated;

/// The interval of watermark reads while a request waits for it.
const WATERMARK_POLL: Duration = Duration::from_millis(3);

/// The reason for refusing decisions while Redis' clock is too far ahead.
pub const CLOCK_AHEAD: &str = "Redis' clock is far ahead of this machine's: correct the wrong one, then run \
                               `rushgate clock show`";

/// An empty list in MessagePack.
const EMPTY_LIST: u8 = 0x90;

/// The clocks at the time of a reply.
#[derive(Clone, Copy, Debug)]
struct Clock {
    now_ms: TimestampMs,
    time_ms: TimestampMs,
    /// The server's clock minus this machine's clock.
    ahead_ms: i64,
    received: Instant,
}

#[derive(Clone, Debug, Default)]
struct LastSeen {
    /// 0 until the first reply.
    epoch: u64,
    /// When this epoch was first received.
    learned: Option<Instant>,
    seen_seq: u64,
    /// The tip of the entry `seen_seq`.
    seen_tip: String,
    applied: u64,
    clock: Option<Clock>,
}

/// The connection on which a server was last compared with a gate, and that gate.
#[derive(Clone, Debug, Default)]
struct Identified {
    /// 0: none yet.
    connection: u64,
    /// Run id; `None`: PostgreSQL named none, or was not seen.
    gate: Option<String>,
}

/// The reason of a cell that is not ready because its connections are new.
const UNIDENTIFIED: &str =
    "its new connection to Redis was not yet compared with the gate that PostgreSQL names";

/// The permission for a call: until the end of the lease, on the server that PostgreSQL names.
#[derive(Clone, Debug)]
pub struct Pass {
    pub view: View,
    /// The run id of the server that is the gate; `None`: any server.
    pub gate: Option<String>,
    pub until: Instant,
    /// `until` on the server's clock, never later than that.
    pub until_ms: TimestampMs,
}

/// The state of a cell that a script call needs.
#[derive(Clone, Debug)]
pub struct View {
    pub epoch: u64,
    pub learned: Instant,
    pub seen_seq: u64,
    pub seen_tip: String,
    clock: Clock,
}

impl View {
    /// `at` on the server's clock, in milliseconds. The estimate is never ahead of that clock, so a
    /// deadline comes too early rather than too late.
    pub fn server_time(&self, at: Instant) -> TimestampMs {
        let ms = |d: Duration| i64::try_from(d.as_millis()).unwrap_or(i64::MAX / 2);
        match at.checked_duration_since(self.clock.received) {
            Some(after) => self.clock.time_ms + ms(after),
            None => self.clock.time_ms - ms(self.clock.received - at),
        }
    }

    fn is_fresh(&self) -> bool {
        self.clock.received.elapsed() < FENCE_CLOCK_AGE
    }

    /// The time by which the gate would date a fact now.
    pub fn now(&self) -> TimestampMs {
        self.server_time(Instant::now()).max(self.clock.now_ms)
    }
}

/// One cell, as known to this instance.
pub struct Cell {
    pub number: u32,
    /// The connection for decisions.
    pub writer: CheckedConnection,
    /// The connection for reads, so that they do not queue behind decisions.
    pub reader: Client,
    reader_connections: Connections,
    /// By [`Side`].
    identified: Mutex<[Identified; 2]>,
    pub writes: WriteState,
    /// Calls without an answer, for each connection: an outage fails many batches.
    silent: [Mutex<Repeated>; 2],
    known: Mutex<LastSeen>,
    watermark: watch::Sender<(u64, u64)>,
    watched: Notify,
    pub fence: CellFence,
    /// The epoch or gate in PostgreSQL has changed since the connections were last probed.
    pub probe_due: AtomicBool,
    /// The gate's clock minus this machine's clock.
    clock_ahead: Gauge,
}

impl Cell {
    pub fn new(number: u32, writer: CheckedConnection, reader: Client, fence: CellFence) -> Self {
        let _ = metrics::CELL_CLOSES.counter_of_cell(number); // registers the counter at 0
        Self {
            number,
            writer,
            reader_connections: Connections::new(&reader),
            reader,
            identified: Mutex::default(),
            writes: WriteState::default(),
            silent: [
                Mutex::new(Repeated::new("no answer from the gate to decisions")),
                Mutex::new(Repeated::new("no answer from the gate to reads")),
            ],
            known: Mutex::default(),
            watermark: watch::Sender::new((0, 0)),
            watched: Notify::new(),
            fence,
            probe_due: AtomicBool::new(false),
            clock_ahead: metrics::CLOCK_AHEAD.gauge_of_cell(number),
        }
    }

    /// Obtains the permission for the next call. Reads PostgreSQL or Redis first if the known state
    /// is not sufficient.
    pub async fn pass(&self) -> Result<Pass, GateError> {
        for round in 0..=GATE_REPEATS {
            let (view, now) = (self.view().await?, Instant::now());
            match self.fence.judge(now, view.epoch, view.learned) {
                // The rest of the lease must be long enough for a batch to be decided.
                Verdict::Decide { until, seen: true, .. }
                    if round == 0 && until < now + FENCE_LEASE_LEAST =>
                {
                    self.fence.instance.look().await;
                }
                Verdict::Decide { until, until_ms: Some(until_ms), gate, .. } => {
                    return Ok(Pass { view, gate, until, until_ms });
                }
                // While PostgreSQL is unreachable, an instance in `available` mode has no real
                // lease that a frozen process could outlive, so an estimated end is enough.
                Verdict::Decide { until, gate, seen: false, .. } => {
                    let until_ms = view.server_time(until);
                    return Ok(Pass { view, gate, until, until_ms });
                }
                // The server's clock was not known when the look began.
                Verdict::Decide { .. } => {
                    self.refresh().await?;
                    self.fence.instance.look().await;
                }
                Verdict::Look => {
                    if !view.is_fresh() {
                        self.refresh().await?;
                    }
                    self.fence.instance.look().await;
                }
                Verdict::Over(later) => {
                    // After a rebuild the new epoch may already be open here.
                    self.refresh().await?;
                    let epoch = self.view().await?.epoch;
                    if epoch < later {
                        return Err(GateError::Unavailable(over(later, epoch)));
                    }
                }
                Verdict::Refuse(why) => return Err(GateError::Unavailable(why)),
            }
        }
        Err(GateError::Unavailable("PostgreSQL's cursors could not be read in time".into()))
    }

    /// `at` on the server's clock, if a recent reply has shown that clock.
    pub fn server_time_at(&self, at: Instant) -> Option<TimestampMs> {
        let view = self.known_view().filter(View::is_fresh)?;
        Some(view.server_time(at))
    }

    /// Whether the fence refuses decisions in this cell.
    pub fn is_refused(&self) -> bool {
        self.refusal().is_some()
    }

    /// Whether the server's clock is too far ahead for decisions.
    pub async fn clock_jumped(&self) -> bool {
        let jumped = || {
            let ahead = self.known_view().map_or(0, |view| view.clock.ahead_ms);
            ahead > CLOCK_JUMP_LIMIT.as_millis() as i64
        };
        // The clock may have been corrected since. An instance that is not ready gets no requests
        // whose replies would show that, so this asks.
        jumped() && (self.refresh().await.is_err() || jumped())
    }

    /// Why the fence refuses decisions in this cell; `None` if it does not.
    pub fn refusal(&self) -> Option<String> {
        self.fence.trouble(self.known_view()?.epoch)
    }

    /// Why the cell, which is open on its Redis in `epoch`, may not decide. A restarted Redis is
    /// another server, and no call may have reached it yet: a new connection is first compared with
    /// the gate that PostgreSQL names.
    pub async fn trouble(&self, epoch: u64) -> Option<String> {
        if !self.is_identified(epoch) {
            self.fence.instance.look().await;
            self.probe().await;
        }
        self.fence
            .trouble(epoch)
            .or_else(|| (!self.is_identified(epoch)).then(|| UNIDENTIFIED.to_owned()))
    }

    /// Whether a connection has changed since it was last compared; asks no server.
    pub fn known_trouble(&self) -> Option<String> {
        let epoch = self.known_view()?.epoch;
        (!self.is_identified(epoch)).then(|| format!("cell {}: {UNIDENTIFIED}", self.number))
    }

    /// Whether both connections are those that were compared with the gate that PostgreSQL names.
    fn is_identified(&self, epoch: u64) -> bool {
        let gate = self.fence.gate_of(epoch);
        let identified = self.identified.lock().unwrap_or_else(PoisonError::into_inner);
        [Side::Writer, Side::Reader].into_iter().all(|side| {
            let Identified { connection, gate: compared } = &identified[side as usize];
            *connection == self.connection(side) && (gate.is_none() || gate == *compared)
        })
    }

    /// The number of the present connection.
    fn connection(&self, side: Side) -> u64 {
        match side {
            Side::Writer => self.writer.connection(),
            Side::Reader => self.reader_connections.number(),
        }
    }

    /// Asks on both connections which server they lead to. Closes the gate there if its epoch is
    /// over.
    pub async fn probe(&self) {
        let known = || self.known_view().map_or(0, |view| view.epoch);
        let before = known();
        let ask =
            || futures::future::join(self.refresh_on(Side::Reader), self.refresh_on(Side::Writer));
        let _ = ask().await; // an unreachable Redis is no error here; any answer has been recorded
        if known() != before {
            let _ = ask().await; // the gate of a newly received epoch can be checked only now
        }
        let Some(View { epoch, learned, .. }) = self.known_view() else { return };
        if let Verdict::Over(later) = self.fence.judge(Instant::now(), epoch, learned) {
            self.close(epoch, &over(later, epoch)).await;
        }
    }

    /// Reconnects both clients: the address may lead to another server by now.
    pub async fn reconnect(&self) {
        for client in [&self.writer.client, &self.reader] {
            if let Err(error) = client.force_reconnection().await {
                tracing::debug!(cell = self.number, %error, "cannot reconnect to Redis");
            }
        }
    }

    pub fn client(&self, side: Side) -> &Client {
        match side {
            Side::Writer => &self.writer.client,
            Side::Reader => &self.reader,
        }
    }

    /// Logs that calls on a connection get no answer: once, then counted, and the end.
    pub fn heard(&self, side: Side, answer: Result<(), &str>) {
        let mut silent = self.silent[side as usize].lock().unwrap_or_else(PoisonError::into_inner);
        match answer {
            Ok(()) => silent.works(),
            Err(why) => silent.failed(&why),
        }
    }

    /// The current view. Asks Redis first if nothing is known yet.
    pub async fn view(&self) -> Result<View, GateError> {
        match self.known_view() {
            Some(view) => Ok(view),
            None => {
                // Boxed: only the first call gets here, but the future of every order would carry
                // its size.
                Box::pin(self.refresh()).await?;
                self.known_view()
                    .ok_or_else(|| GateError::Unavailable("the gate is not built yet".into()))
            }
        }
    }

    fn known_view(&self) -> Option<View> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let LastSeen { epoch, learned, seen_seq, seen_tip, clock, .. } = known;
        (epoch > 0).then_some(View { epoch, learned: learned?, seen_seq, seen_tip, clock: clock? })
    }

    /// Reads the cell's place from Redis, and lets the script check that its log still holds the
    /// entry that this instance has seen.
    pub async fn refresh(&self) -> Result<CellState, GateError> {
        self.refresh_on(Side::Reader).await
    }

    async fn refresh_on(&self, side: Side) -> Result<CellState, GateError> {
        let unavailable = |why: String| GateError::Unavailable(format!("Redis: {why}"));
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (gate, connection) = (self.fence.gate_of(known.epoch), self.connection(side));
        let head = wire::pack(&(known.epoch, known.seen_seq, &known.seen_tip, &gate));
        let head = head.map_err(|e| unavailable(e.to_string()))?;
        let keys = READ.keys(&Keys::new(self.number, known.epoch), 0);
        let reply = match READ.call(self.client(side), keys, head, vec![EMPTY_LIST]).await {
            Ok(reply) => reply,
            Err(
                CallError::NotRun(why) | CallError::Unknown(why) | CallError::ScriptFailed(why),
            ) => {
                return Err(unavailable(why));
            }
        };
        self.learn_from(&reply);
        // The script compares the epoch first.
        if !matches!(&reply, Reply::Refused(refused) if ["absent", "epoch"].contains(&refused.why.as_str()))
        {
            let mut identified = self.identified.lock().unwrap_or_else(PoisonError::into_inner);
            identified[side as usize] = Identified { connection, gate };
        }
        match reply {
            Reply::Decided(decided) => {
                self.fence.leads(side, false);
                Ok(decided.place)
            }
            Reply::Refused(Refused { why, place }) => match why.as_str() {
                "absent" => Err(GateError::Unavailable(
                    "Redis holds no gate; the reconciler builds it".into(),
                )),
                "elsewhere" => {
                    self.fence.leads(side, true);
                    Err(GateError::Unavailable(
                        "PostgreSQL names another Redis as the cell's gate".into(),
                    ))
                }
                "behind" => {
                    self.close_behind(side, place.epoch, (known.seen_seq, &known.seen_tip)).await;
                    Err(GateError::Unavailable(
                        "Redis went back in time; the reconciler rebuilds the gate".into(),
                    ))
                }
                _ => {
                    self.fence.leads(side, false);
                    Ok(place)
                }
            },
        }
    }

    /// Updates the known state from a script's reply.
    pub fn learn_from(&self, reply: &Reply) {
        match reply {
            Reply::Decided(decided) => self.learn(&decided.place, true),
            // A Redis that went back in time, or is not the gate, is no source of state.
            Reply::Refused(refused) if ["behind", "elsewhere"].contains(&refused.why.as_str()) => {}
            // For a closed cell or another epoch, the script has not compared the log with the
            // entry seen, so only the epoch and the clock are taken.
            Reply::Refused(refused) => self.learn(&refused.place, false),
        }
    }

    fn learn(&self, place: &CellState, sure: bool) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if place.epoch == 0 || place.epoch < known.epoch {
            return;
        }
        if place.epoch > known.epoch {
            *known = LastSeen {
                epoch: place.epoch,
                learned: Some(Instant::now()),
                ..LastSeen::default()
            };
        }
        if sure && place.seq > known.seen_seq {
            known.seen_seq = place.seq;
            known.seen_tip.clone_from(&place.tip);
        }
        let here_ms = jiff::Timestamp::now().as_millisecond();
        self.clock_ahead.set((place.now - here_ms) as f64 / 1_000.0);
        let (received, ahead_ms) = (Instant::now(), place.time - here_ms);
        known.clock = Some(Clock { now_ms: place.now, time_ms: place.time, ahead_ms, received });
        if !sure {
            return;
        }
        known.applied = known.applied.max(place.applied);
        let mark = (place.epoch, known.applied);
        drop(known);
        self.watermark.send_if_modified(|old| std::mem::replace(old, mark) != mark);
    }

    /// Asks Redis whether it accepts writes, without writing.
    pub async fn probe_writes(&self) {
        let asked =
            PROBE_WRITES.call(&self.writer.client, vec![Keys::meta(self.number)], vec![]).await;
        self.writes.learn(self.number, asked.as_ref().map(|_| ()).map_err(|e| e.details()));
    }

    /// Closes the cell on the server of this connection, if the entry seen is not there.
    pub async fn close_behind(&self, side: Side, epoch: u64, seen: (u64, &str)) {
        if let Err(e) = close_behind(self.client(side), self.number, epoch, seen).await {
            tracing::error!(cell = self.number, epoch, error = %e, "could not close the cell");
        }
    }

    /// Closes the cell, so that the reconciler verifies or rebuilds it.
    pub async fn close(&self, epoch: u64, reason: &str) {
        if let Err(e) = close(&self.writer.client, self.number, epoch, reason).await {
            tracing::error!(cell = self.number, epoch, reason, error = %e, "could not close the cell");
        }
    }

    /// Waits until the watermark has passed `position`.
    pub async fn wait_applied(
        &self,
        position: Position,
        deadline: Instant,
    ) -> Result<(), NotApplied> {
        let mut watermark = self.watermark.subscribe();
        let reached = async {
            loop {
                let (epoch, applied) = *watermark.borrow_and_update();
                if epoch > position.epoch {
                    return Err(NotApplied::EpochChanged);
                }
                if epoch == position.epoch && applied >= position.seq {
                    return Ok(());
                }
                self.watched.notify_one();
                if watermark.changed().await.is_err() {
                    return Err(NotApplied::TimedOut);
                }
            }
        };
        tokio::time::timeout_at(deadline.into(), reached).await.unwrap_or(Err(NotApplied::TimedOut))
    }

    /// Polls the watermark while a request waits for it. Never returns.
    pub async fn follow_watermark(&self) {
        loop {
            self.watched.notified().await;
            // The waiter that notified may be gone and another one there: poll while there is any.
            while self.watermark.receiver_count() > 0 {
                if let Err(e) = self.refresh().await {
                    tracing::debug!(cell = self.number, error = %e, "cannot read the watermark");
                    tokio::time::sleep(WATERMARK_POLL * 10).await;
                }
                tokio::time::sleep(WATERMARK_POLL).await;
            }
        }
    }
}
