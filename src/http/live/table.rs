//! What streams watch: a cell for each product and template, and the streams.
//!
//! A [`Cell`] is made when the first stream watches its id and removed with the last. Its reading
//! changes only in [`Live::publish`]. A [`Listener`] is a stream as the table knows it: one bit for
//! each of its slots that has changed, and a waker. Locks are taken in the order table, cell.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use arc_swap::ArcSwapOption;
use axum::body::Bytes;
use futures::task::AtomicWaker;
use tokio::sync::Notify;

use super::event::{self, Shown};
use super::metrics::LiveMetrics;
use crate::config::bounds::{LIVE_ASKED_IDS, LIVE_WATCHED_IDS};
use crate::domain::{ProductId, TemplateId, TimestampMs};
use crate::http::problem::{Code, Problem};

/// What can be watched.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    Product(ProductId),
    Template(TemplateId),
}

impl Key {
    pub fn id(&self) -> &str {
        match self {
            Self::Product(id) => id.as_str(),
            Self::Template(id) => id.as_str(),
        }
    }

    /// The name of an event about it.
    pub fn event(&self) -> &'static str {
        match self {
            Self::Product(_) => "product",
            Self::Template(_) => "template",
        }
    }
}

/// A value as it was last read.
pub struct Reading {
    /// Grows with each change.
    pub version: u64,
    /// `None`: no such product or template.
    pub shown: Option<Shown>,
    /// The event that says so.
    pub event: Bytes,
}

pub struct Cell {
    pub key: Key,
    /// `None`: not read yet.
    pub reading: ArcSwapOption<Reading>,
    /// The streams that watch it, by their numbers, with the slot that it has there.
    listeners: Mutex<HashMap<u64, (Arc<Listener>, usize)>>,
    /// No stream watches it any more; it is no longer in the table.
    abandoned: AtomicBool,
}

impl Cell {
    fn new(key: Key) -> Self {
        Self {
            key,
            reading: ArcSwapOption::empty(),
            listeners: Mutex::default(),
            abandoned: AtomicBool::new(false),
        }
    }

    fn listeners(&self) -> MutexGuard<'_, HashMap<u64, (Arc<Listener>, usize)>> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the reading if the value has changed, and marks it for the streams.
    fn learn(&self, shown: Option<Shown>, now: TimestampMs) {
        let before = self.reading.load();
        if before.as_ref().is_some_and(|before| before.shown == shown) {
            return;
        }
        let version = before.as_ref().map_or(0, |before| before.version) + 1;
        let event = shown.map(|shown| event::change(&self.key, shown, now)).unwrap_or_default();
        self.reading.store(Some(Arc::new(Reading { version, shown, event })));
        for (listener, slot) in self.listeners().values() {
            listener.mark(1 << slot);
        }
    }
}

/// A stream: what has changed since it last looked.
#[derive(Default)]
pub struct Listener {
    /// One bit for each slot, and the two below.
    marks: AtomicU64,
    pub waker: AtomicWaker,
}

impl Listener {
    /// The gate has opened or closed.
    pub const GATE: u64 = 1 << 62;
    /// The instance stops.
    pub const STOP: u64 = 1 << 63;

    fn mark(&self, bits: u64) {
        self.marks.fetch_or(bits, Ordering::AcqRel);
        self.waker.wake();
    }

    /// What was marked since the last call.
    pub fn take_marks(&self) -> u64 {
        self.marks.swap(0, Ordering::AcqRel)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateState {
    /// Not read since there are streams.
    Unknown,
    Open,
    Closed,
}

#[derive(Default)]
struct Table {
    cells: HashMap<Key, Arc<Cell>>,
    /// Cells that wait for their first reading; each is in one of the two queues.
    unread: VecDeque<Arc<Cell>>,
    /// The others, the one that waits longest first. Both queues may hold abandoned cells.
    turns: VecDeque<Arc<Cell>>,
    listeners: HashMap<u64, Arc<Listener>>,
    last_number: u64,
    stopping: bool,
}

/// The live streams of an instance.
pub struct Live {
    limit: usize,
    table: Mutex<Table>,
    gate: AtomicU8,
    begun: Instant,
    /// The gate's clock at `begun`, in milliseconds.
    clock: AtomicI64,
    /// There is something to read.
    pub wanted: Notify,
    pub metrics: LiveMetrics,
}

/// A stream's place in the table, which it leaves when dropped.
pub struct Subscription {
    pub live: Arc<Live>,
    pub listener: Arc<Listener>,
    pub cells: Box<[Arc<Cell>]>,
    number: u64,
}

impl Live {
    /// `limit`: streams that are open at once.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            table: Mutex::default(),
            gate: AtomicU8::new(0),
            begun: Instant::now(),
            clock: AtomicI64::new(0),
            wanted: Notify::new(),
            metrics: LiveMetrics::default(),
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a stream that watches `keys`, which are different from each other.
    pub fn subscribe(self: Arc<Self>, keys: Vec<Key>) -> Result<Subscription, Problem> {
        let listener = Arc::<Listener>::default();
        let mut table = self.table();
        if table.stopping {
            return Err(overloaded("This instance is stopping. Connect again shortly."));
        }
        if table.listeners.len() >= self.limit {
            return Err(overloaded("Too many live streams are open here. Try again shortly."));
        }
        let fresh = keys.iter().filter(|key| !table.cells.contains_key(key)).count();
        if table.cells.len() + fresh > LIVE_WATCHED_IDS {
            return Err(overloaded(
                "The live streams of this instance watch too many different ids. Try again shortly.",
            ));
        }
        table.last_number += 1;
        let number = table.last_number;
        table.listeners.insert(number, Arc::clone(&listener));
        let cells = keys.into_iter().enumerate().map(|(slot, key)| {
            let cell = table.cell(key);
            cell.listeners().insert(number, (Arc::clone(&listener), slot));
            cell
        });
        let cells = cells.collect();
        self.count(&table);
        drop(table);
        self.wanted.notify_one();
        Ok(Subscription { live: self, listener, cells, number })
    }

    fn count(&self, table: &Table) {
        self.metrics.streams.set(table.listeners.len() as f64);
        self.metrics.watched.set(table.cells.len() as f64);
    }

    /// The cells that are to be read next; none: nothing is watched.
    pub fn next_batch(&self) -> Vec<Arc<Cell>> {
        let mut table = self.table();
        if table.listeners.is_empty() {
            table.unread.clear();
            table.turns.clear();
            // What the gate did while nobody watched is not known.
            self.gate.store(GateState::Unknown as u8, Ordering::Release);
        }
        table.next_batch()
    }

    /// Takes over a reading of the gate: for each cell of a batch, its value.
    pub fn publish<'a>(
        &self,
        read: impl Iterator<Item = (&'a Arc<Cell>, Option<Shown>)>,
        now: TimestampMs,
    ) {
        let since = i64::try_from(self.begun.elapsed().as_millis()).unwrap_or(i64::MAX / 2);
        self.clock.store(now - since, Ordering::Release);
        self.set_gate(GateState::Open);
        for (cell, shown) in read {
            cell.learn(shown, now);
        }
    }

    /// The gate's clock now, as far as the last reading tells.
    pub fn now(&self) -> TimestampMs {
        let since = i64::try_from(self.begun.elapsed().as_millis()).unwrap_or(i64::MAX / 2);
        self.clock.load(Ordering::Acquire) + since
    }

    pub fn gate(&self) -> GateState {
        match self.gate.load(Ordering::Acquire) {
            1 => GateState::Open,
            2 => GateState::Closed,
            _ => GateState::Unknown,
        }
    }

    /// Takes over whether the gate can be read, and marks a change for all streams.
    pub fn set_gate(&self, state: GateState) {
        if self.gate.swap(state as u8, Ordering::AcqRel) != state as u8 {
            self.table().listeners.values().for_each(|listener| listener.mark(Listener::GATE));
        }
    }

    /// Ends all streams, and admits no more.
    pub fn stop(&self) {
        let mut table = self.table();
        table.stopping = true;
        table.listeners.values().for_each(|listener| listener.mark(Listener::STOP));
    }
}

impl Table {
    fn cell(&mut self, key: Key) -> Arc<Cell> {
        if let Some(cell) = self.cells.get(&key) {
            return Arc::clone(cell);
        }
        let cell = Arc::new(Cell::new(key.clone()));
        self.cells.insert(key, Arc::clone(&cell));
        self.unread.push_back(Arc::clone(&cell));
        cell
    }

    /// Up to half of a batch are new cells while others wait for their turn: streams that come and
    /// go must not keep the others from being read.
    fn next_batch(&mut self) -> Vec<Arc<Cell>> {
        let watched = |cell: &Arc<Cell>| !cell.abandoned.load(Ordering::Acquire);
        let mut batch = Vec::new();
        let take = |from: &mut VecDeque<Arc<Cell>>, batch: &mut Vec<Arc<Cell>>, most: usize| {
            // Each cell has one turn in a batch: those that are pushed back are not in `from`.
            while batch.len() < most
                && let Some(cell) = from.pop_front()
            {
                if watched(&cell) {
                    batch.push(cell);
                }
            }
        };
        take(&mut self.unread, &mut batch, LIVE_ASKED_IDS / 2);
        take(&mut self.turns, &mut batch, LIVE_ASKED_IDS);
        take(&mut self.unread, &mut batch, LIVE_ASKED_IDS);
        self.turns.extend(batch.iter().cloned());
        batch
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut table = self.live.table();
        table.listeners.remove(&self.number);
        for cell in &self.cells {
            let mut listeners = cell.listeners();
            listeners.remove(&self.number);
            if listeners.is_empty() {
                cell.abandoned.store(true, Ordering::Release);
                table.cells.remove(&cell.key);
            }
        }
        self.live.count(&table);
    }
}

fn overloaded(detail: &'static str) -> Problem {
    Problem::new(Code::Overloaded, detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ProductState;

    fn key(id: &str) -> Key {
        Key::Product(ProductId::parse(id).unwrap())
    }

    fn keys(range: std::ops::Range<usize>) -> Vec<Key> {
        range.map(|n| key(&format!("p{n}"))).collect()
    }

    fn watch(live: &Arc<Live>, keys: Vec<Key>) -> Subscription {
        Arc::clone(live).subscribe(keys).ok().unwrap()
    }

    fn stock(stock: u64) -> Option<Shown> {
        Some(Shown::Product { stock, state: ProductState::Open })
    }

    #[test]
    fn all_cells_have_their_turn_and_new_ones_come_first() {
        let live = Arc::new(Live::new(1_000));
        let subscriptions: Vec<_> =
            (0..20).map(|n| watch(&live, keys(n * 50..n * 50 + 50))).collect();
        let ids = |batch: Vec<Arc<Cell>>| -> std::collections::HashSet<String> {
            batch.iter().map(|cell| cell.key.id().to_owned()).collect()
        };
        let (first, second) = (ids(live.next_batch()), ids(live.next_batch()));
        assert_eq!((first.len(), second.len()), (LIVE_ASKED_IDS, LIVE_ASKED_IDS));
        assert!(first.union(&second).count() >= 3 * LIVE_ASKED_IDS / 2);
        for _ in 0..2 {
            live.next_batch();
        }
        let _late = watch(&live, vec![key("late")]);
        assert!(ids(live.next_batch()).contains("late"));
        drop(subscriptions);
        assert_eq!(ids(live.next_batch()).len(), 1, "what nobody watches is not read");
        assert!(live.table().turns.len() <= 1, "nor kept");
    }

    #[test]
    fn a_change_marks_the_streams_that_watch_it_once() {
        let live = Arc::new(Live::new(10));
        let (one, both) = (watch(&live, vec![key("a")]), watch(&live, vec![key("b"), key("a")]));
        let batch = live.next_batch();
        let publish = |a, b| {
            let of = |cell: &Arc<Cell>| if cell.key.id() == "a" { stock(a) } else { stock(b) };
            live.publish(batch.iter().map(|cell| (cell, of(cell))), 0);
        };
        let marks = |of: &Subscription| of.listener.take_marks();
        publish(5, 5);
        assert_eq!((marks(&one), marks(&both)), (Listener::GATE | 1, Listener::GATE | 3));
        publish(5, 5);
        assert_eq!((marks(&one), marks(&both)), (0, 0));
        publish(4, 5);
        publish(3, 5);
        assert_eq!((marks(&one), marks(&both)), (1, 2));
        assert_eq!(one.cells[0].reading.load().as_ref().unwrap().shown, stock(3));
        live.set_gate(GateState::Closed);
        live.stop();
        assert_eq!(marks(&one), Listener::GATE | Listener::STOP);
    }

    #[test]
    fn streams_and_ids_are_bounded() {
        let live = Arc::new(Live::new(1));
        let first = watch(&live, vec![key("a")]);
        let refused = |keys| Arc::clone(&live).subscribe(keys).err().map(|problem| problem.code());
        assert_eq!(refused(vec![key("a")]), Some(Code::Overloaded));
        drop(first);
        assert!(live.table().cells.is_empty());
        let live = Arc::new(Live::new(1_000));
        let _all: Vec<_> =
            (0..LIVE_WATCHED_IDS / 50).map(|n| watch(&live, keys(n * 50..n * 50 + 50))).collect();
        assert!(Arc::clone(&live).subscribe(vec![key("one-more")]).is_err());
        assert!(Arc::clone(&live).subscribe(keys(0..50)).is_ok(), "these are watched already");
    }
}
