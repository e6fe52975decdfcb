//! A stream as the body of an answer. It is polled when the client can take more, and then makes
//! what is due from the present values.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Bytes, HttpBody};
use hyper::body::Frame;
use tokio::time::{Instant, Sleep};

use super::event;
use super::table::{GateState, Key, Listener, Subscription};
use crate::config::bounds::{LIVE_HEARTBEAT, LIVE_RETRY_MS};

pub struct EventStream {
    subscription: Subscription,
    /// The version sent of each slot; 0: none.
    sent: Box<[u64]>,
    begun: bool,
    snapshot_sent: bool,
    /// The last event said that the gate is closed.
    told_closed: bool,
    heartbeat: Pin<Box<Sleep>>,
}

/// Text that is due. One shared event is not copied.
#[derive(Default)]
struct Due {
    only: Bytes,
    several: Vec<u8>,
}

impl Due {
    fn add(&mut self, text: Bytes) {
        if self.only.is_empty() && self.several.is_empty() {
            self.only = text;
        } else {
            self.several.extend_from_slice(&std::mem::take(&mut self.only));
            self.several.extend_from_slice(&text);
        }
    }

    fn into_bytes(self) -> Option<Bytes> {
        let all = if self.several.is_empty() { self.only } else { self.several.into() };
        (!all.is_empty()).then_some(all)
    }
}

impl EventStream {
    pub fn new(subscription: Subscription) -> Self {
        Self {
            sent: vec![0; subscription.cells.len()].into(),
            subscription,
            begun: false,
            snapshot_sent: false,
            told_closed: false,
            heartbeat: Box::pin(tokio::time::sleep(LIVE_HEARTBEAT)),
        }
    }

    /// What is due now; `marks`: what has changed.
    fn due(&mut self, marks: u64) -> Due {
        let mut due = Due::default();
        if !std::mem::replace(&mut self.begun, true) {
            let retry = LIVE_RETRY_MS + fastrand::u64(0..=LIVE_RETRY_MS);
            due.add(event::retry(retry).into());
        }
        let metrics = &self.subscription.live.metrics;
        match (self.subscription.live.gate(), self.told_closed) {
            (GateState::Closed, false) => {
                due.add(Bytes::from_static(event::UNAVAILABLE.as_bytes()));
                metrics.unavailable.increment(1);
                self.told_closed = true;
            }
            (GateState::Open, true) => {
                due.add(event::available(self.subscription.live.now()).into());
                metrics.available.increment(1);
                self.told_closed = false;
            }
            _ => {}
        }
        if self.snapshot_sent {
            self.add_changes(marks, &mut due);
        } else if let Some(snapshot) = self.snapshot() {
            due.add(snapshot.into());
        }
        due
    }

    fn add_changes(&mut self, marks: u64, due: &mut Due) {
        let metrics = &self.subscription.live.metrics;
        for (slot, cell) in self.subscription.cells.iter().enumerate() {
            if marks & (1 << slot) == 0 {
                continue;
            }
            let reading = cell.reading.load();
            let Some(reading) = reading.as_ref().filter(|it| it.version != self.sent[slot]) else {
                continue;
            };
            self.sent[slot] = reading.version;
            due.add(reading.event.clone());
            match &cell.key {
                Key::Product(_) => metrics.products.increment(1),
                Key::Template(_) => metrics.templates.increment(1),
            }
        }
    }

    /// `None` until everything was read and the gate is open.
    fn snapshot(&mut self) -> Option<String> {
        let Subscription { live, cells, .. } = &self.subscription;
        if live.gate() != GateState::Open {
            return None;
        }
        let now = live.now();
        let readings: Option<Vec<_>> = cells.iter().map(|cell| cell.reading.load_full()).collect();
        let readings = readings?;
        for (sent, reading) in self.sent.iter_mut().zip(&readings) {
            *sent = reading.version;
        }
        let known = cells.iter().zip(&readings);
        let known = known.filter_map(|(cell, reading)| Some((&cell.key, reading.shown?)));
        self.snapshot_sent = true;
        live.metrics.snapshots.increment(1);
        Some(event::snapshot(known, now))
    }
}

impl HttpBody for EventStream {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let stream = self.get_mut();
        // Before the marks are read, so that none is missed.
        stream.subscription.listener.waker.register(cx.waker());
        let marks = stream.subscription.listener.take_marks();
        if marks & Listener::STOP != 0 {
            return Poll::Ready(None);
        }
        let mut due = if marks == 0 && stream.begun { Due::default() } else { stream.due(marks) };
        while stream.heartbeat.as_mut().poll(cx).is_ready() {
            due.add(Bytes::from_static(event::HEARTBEAT.as_bytes()));
            stream.heartbeat.as_mut().reset(Instant::now() + LIVE_HEARTBEAT);
        }
        match due.into_bytes() {
            Some(text) => Poll::Ready(Some(Ok(Frame::data(text)))),
            None => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ProductId;
    use crate::domain::ProductState;
    use crate::http::live::event::Shown;
    use crate::http::live::table::{Cell, Live};
    use futures::FutureExt;
    use std::sync::Arc;

    struct Watching {
        live: Arc<Live>,
        stream: EventStream,
        batch: Vec<Arc<Cell>>,
    }

    impl Watching {
        fn new() -> Self {
            let live = Arc::new(Live::new(1));
            let keys = ["a", "b"].map(|id| Key::Product(ProductId::parse(id).unwrap()));
            let subscription = Arc::clone(&live).subscribe(keys.into()).ok().unwrap();
            let stream = EventStream::new(subscription);
            Self { batch: live.next_batch(), live, stream }
        }

        fn publish(&self, stocks: [u64; 2]) {
            let shown =
                stocks.map(|stock| Some(Shown::Product { stock, state: ProductState::Open }));
            self.live.publish(self.batch.iter().zip(shown), 0);
        }

        /// The names of the events, and the stocks in them, that are due; `None`: the stream ended.
        fn due(&mut self) -> Option<Vec<String>> {
            let stream = &mut self.stream;
            let frame = std::future::poll_fn(|cx| Pin::new(&mut *stream).poll_frame(cx));
            let text = match frame.now_or_never() {
                None => String::new(),
                Some(None) => return None,
                Some(Some(frame)) => {
                    String::from_utf8(frame.unwrap().into_data().unwrap().to_vec()).unwrap()
                }
            };
            let events = text.split("\n\n").filter_map(|event| event.strip_prefix("event: "));
            let said = |event: &str| {
                let (name, data) = event.split_once("\ndata: ").unwrap();
                let data: serde_json::Value = serde_json::from_str(data).unwrap();
                let stock = data.get("stock").map(ToString::to_string).unwrap_or_default();
                format!("{name}{stock}")
            };
            Some(events.map(said).collect())
        }
    }

    #[tokio::test]
    async fn a_stream_begins_with_a_snapshot_and_goes_on_with_the_latest_values() {
        let mut watching = Watching::new();
        assert!(watching.due().unwrap().is_empty(), "nothing is read yet");
        watching.publish([5, 7]);
        assert_eq!(watching.due().unwrap(), ["snapshot"]);
        watching.publish([5, 7]);
        assert!(watching.due().unwrap().is_empty());
        for stock in 0..1_000 {
            watching.publish([stock, 7]);
        }
        assert_eq!(watching.due().unwrap(), ["product999"], "no queue");
        watching.publish([1, 2]);
        assert_eq!(watching.due().unwrap(), ["product1", "product2"]);
        watching.live.stop();
        assert_eq!(watching.due(), None);
    }

    #[tokio::test]
    async fn a_closed_gate_is_told_once_and_a_snapshot_waits_for_it() {
        let mut watching = Watching::new();
        watching.live.set_gate(GateState::Closed);
        assert_eq!(watching.due().unwrap(), ["unavailable"]);
        watching.live.set_gate(GateState::Closed);
        assert!(watching.due().unwrap().is_empty());
        watching.publish([5, 7]);
        assert_eq!(watching.due().unwrap(), ["available", "snapshot"]);
        watching.live.set_gate(GateState::Closed);
        watching.publish([4, 7]);
        assert_eq!(watching.due().unwrap(), ["product4"], "closed and opened meanwhile");
    }

    #[tokio::test]
    async fn a_comment_keeps_the_connection_in_use() {
        let mut watching = Watching::new();
        watching.publish([5, 7]);
        watching.due();
        watching.stream.heartbeat = Box::pin(tokio::time::sleep(LIVE_HEARTBEAT / 1_000));
        let stream = &mut watching.stream;
        let frame = std::future::poll_fn(|cx| Pin::new(&mut *stream).poll_frame(cx)).await;
        assert_eq!(frame.unwrap().unwrap().into_data().unwrap(), event::HEARTBEAT);
    }
}
