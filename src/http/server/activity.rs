//! What a connection is doing: whether it has brought a request, how long it has been idle, which
//! HTTP/2 answers are not fully sent, and whether one of its side futures was woken.
//!
//! An [`Activity`] lives as long as its connection. A [`Busy`] counts one request in flight, until
//! it is dropped; an HTTP/2 answer and an open-ended one keep it until the body is sent.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes, HttpBody};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::task::AtomicWaker;
use hyper::body::{Frame, SizeHint};

pub struct Activity {
    since: Instant,
    begun: AtomicU32,
    under_way: AtomicU32,
    /// When the last request ended, in milliseconds after `since`.
    ended_ms: AtomicU64,
    answers: UnsentAnswers,
    /// The connection limit is reached and this connection was idle.
    evicted: AtomicBool,
    /// Waker of the one future in [`SideFutures`] that waits for a flag of this struct.
    side_waker: AtomicWaker,
    /// Whether a future of [`SideFutures`] was woken and must be polled.
    woken: AtomicBool,
    /// Waker of the connection's task.
    task: AtomicWaker,
}

/// Called when a future of [`SideFutures`] can make progress.
impl Wake for Activity {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::Release);
        self.task.wake();
    }
}

/// Answers that are not fully sent, in the order in which they began.
#[derive(Default)]
struct UnsentAnswers {
    unsent: Mutex<(u64, BTreeMap<u64, Instant>)>,
    /// Whether there ever was one: most connections never have any.
    any: AtomicBool,
}

impl Activity {
    pub fn new() -> Self {
        Self {
            since: Instant::now(),
            begun: AtomicU32::new(0),
            under_way: AtomicU32::new(0),
            ended_ms: AtomicU64::new(0),
            answers: UnsentAnswers::default(),
            evicted: AtomicBool::new(false),
            side_waker: AtomicWaker::new(),
            woken: AtomicBool::new(true),
            task: AtomicWaker::new(),
        }
    }

    /// Counts a request as in flight until the returned value is dropped.
    pub fn begin(self: &Arc<Self>) -> Busy {
        self.begun.store(1, Ordering::Relaxed);
        self.under_way.fetch_add(1, Ordering::Relaxed);
        Busy(Arc::clone(self))
    }

    pub fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Relaxed) > 0
    }

    /// Time since the last request in flight ended; zero while there is one.
    pub fn idle_for(&self) -> Duration {
        match self.under_way.load(Ordering::Relaxed) {
            0 => {
                let ended = Duration::from_millis(self.ended_ms.load(Ordering::Relaxed));
                self.since.elapsed().saturating_sub(ended)
            }
            _ => Duration::ZERO,
        }
    }

    /// Evicts the connection if it has been idle for that long.
    pub fn evict_if_idle(&self, at_least: Duration) {
        if self.idle_for() >= at_least {
            self.evicted.store(true, Ordering::Release);
            self.side_waker.wake();
        }
    }

    /// Completes when [`Self::evict_if_idle`] has found the connection idle.
    pub async fn evicted(&self) {
        self.until(&self.evicted).await;
    }

    async fn until(&self, flag: &AtomicBool) {
        std::future::poll_fn(|cx| {
            self.side_waker.register(cx.waker());
            if flag.load(Ordering::Acquire) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Completes when an answer has been unsent for longer than `limit`.
    pub async fn answers_lie(&self, limit: Duration) {
        self.until(&self.answers.any).await;
        loop {
            let oldest = self.answers.lock().1.values().next().copied();
            match oldest.map(|begun| limit.saturating_sub(begun.elapsed())) {
                Some(Duration::ZERO) => return,
                Some(left) => tokio::time::sleep(left).await,
                None => tokio::time::sleep(limit).await,
            }
        }
    }
}

/// The side futures of a connection: its timeouts, eviction, shutdown. The connection's task is
/// polled several times per request; these are polled only after one of them was woken. The check
/// for that reads a flag of the [`Activity`], which every request touches anyway.
pub struct SideFutures<'a, T> {
    futures: FuturesUnordered<BoxFuture<'a, T>>,
    activity: &'a Activity,
    waker: Waker,
}

impl<'a, T> SideFutures<'a, T> {
    /// An activity has one `SideFutures` at a time.
    pub fn new(
        activity: &'a Arc<Activity>,
        futures: impl IntoIterator<Item = BoxFuture<'a, T>>,
    ) -> Self {
        activity.woken.store(true, Ordering::Release);
        Self {
            futures: futures.into_iter().collect(),
            activity,
            waker: Waker::from(Arc::clone(activity)),
        }
    }

    /// The result of the next future that completes; waits for ever when none is left.
    pub async fn next(&mut self) -> T {
        std::future::poll_fn(|cx| {
            self.activity.task.register(cx.waker());
            if !self.activity.woken.load(Ordering::Acquire) {
                return Poll::Pending;
            }
            // Cleared before polling, so that a wake during the poll leads to another poll.
            self.activity.woken.swap(false, Ordering::AcqRel);
            match self.futures.poll_next_unpin(&mut Context::from_waker(&self.waker)) {
                Poll::Ready(Some(ended)) => {
                    // Other futures may be ready, too.
                    self.activity.woken.store(true, Ordering::Release);
                    Poll::Ready(ended)
                }
                _ => Poll::Pending,
            }
        })
        .await
    }
}

impl UnsentAnswers {
    fn lock(&self) -> std::sync::MutexGuard<'_, (u64, BTreeMap<u64, Instant>)> {
        self.unsent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request in flight.
pub struct Busy(Arc<Activity>);

impl Drop for Busy {
    fn drop(&mut self) {
        let now_ms = u64::try_from(self.0.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.ended_ms.store(now_ms, Ordering::Relaxed);
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Busy {
    /// Keeps the request in flight until its answer's body is sent, and records when that began.
    pub fn keep_until_sent(self, body: Body) -> Body {
        let number = self.list_unsent();
        Body::new(SendingBody { body, number, busy: self })
    }

    /// Keeps the request in flight until the body of an open-ended answer ends. `timed`: each of its
    /// frames must be sent in time.
    pub fn keep_while_open(self, body: Body, timed: bool) -> Body {
        Body::new(OpenBody { body, unsent: None, timed, busy: self })
    }

    fn list_unsent(&self) -> u64 {
        let number = {
            let mut unsent = self.0.answers.lock();
            unsent.0 += 1;
            let number = unsent.0;
            unsent.1.insert(number, Instant::now());
            number
        };
        if !self.0.answers.any.swap(true, Ordering::AcqRel) {
            self.0.side_waker.wake();
        }
        number
    }
}

/// An open-ended body. A frame is listed as unsent until the next one is asked for: the protocol
/// asks only when it has taken the frame. It may take one more than the client has room for, so a
/// client that reads nothing is noticed by the frame after that.
struct OpenBody {
    body: Body,
    unsent: Option<u64>,
    timed: bool,
    busy: Busy,
}

impl OpenBody {
    fn unlist(&mut self) {
        if let Some(number) = self.unsent.take() {
            self.busy.0.answers.lock().1.remove(&number);
        }
    }
}

impl Drop for OpenBody {
    fn drop(&mut self) {
        self.unlist();
    }
}

impl HttpBody for OpenBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.unlist();
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if self.timed && matches!(frame, Poll::Ready(Some(_))) {
            self.unsent = Some(self.busy.list_unsent());
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A body that is listed as unsent until it is dropped.
struct SendingBody {
    body: Body,
    number: u64,
    busy: Busy,
}

impl Drop for SendingBody {
    fn drop(&mut self) {
        self.busy.0.answers.lock().1.remove(&self.number);
    }
}

impl HttpBody for SendingBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
