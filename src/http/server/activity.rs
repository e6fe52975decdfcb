//! What a connection is doing: whether it has brought a request, since when it does nothing, and which answers on it lie
//! about unsent; and whether something beside requests wants to be looked at.

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
    answers: Answers,
    /// Somebody else wants the place.
    evicted: AtomicBool,
    /// Of the one future of [`Aside`] that waits for what is told here.
    told: AtomicWaker,
    /// Whether [`Aside`] has anything to look at.
    woken: AtomicBool,
    /// Of the connection's task.
    task: AtomicWaker,
}

/// Something that the futures of [`Aside`] wait for has happened.
impl Wake for Activity {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::Release);
        self.task.wake();
    }
}

/// Answers that are not sent to their end, in the order in which they were begun.
#[derive(Default)]
struct Answers {
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
            answers: Answers::default(),
            evicted: AtomicBool::new(false),
            told: AtomicWaker::new(),
            woken: AtomicBool::new(true),
            task: AtomicWaker::new(),
        }
    }

    /// A request begins; it ends when what is returned is dropped.
    pub fn begin(self: &Arc<Self>) -> Busy {
        self.begun.store(1, Ordering::Relaxed);
        self.under_way.fetch_add(1, Ordering::Relaxed);
        Busy(Arc::clone(self))
    }

    pub fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Relaxed) > 0
    }

    /// How long nothing has been under way.
    pub fn idle_for(&self) -> Duration {
        match self.under_way.load(Ordering::Relaxed) {
            0 => {
                let ended = Duration::from_millis(self.ended_ms.load(Ordering::Relaxed));
                self.since.elapsed().saturating_sub(ended)
            }
            _ => Duration::ZERO,
        }
    }

    /// Ends the connection if it has done nothing for so long.
    pub fn evict_if_idle(&self, at_least: Duration) {
        if self.idle_for() >= at_least {
            self.evicted.store(true, Ordering::Release);
            self.told.wake();
        }
    }

    /// Ends when [`Self::evict_if_idle`] has found the connection idle.
    pub async fn evicted(&self) {
        self.until(&self.evicted).await;
    }

    async fn until(&self, flag: &AtomicBool) {
        std::future::poll_fn(|cx| {
            self.told.register(cx.waker());
            if flag.load(Ordering::Acquire) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Ends when an answer has been lying about for longer than `limit`.
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

/// Futures beside a connection's own work, which is polled several times for each request. These are looked at when one of
/// them was woken only; to find out that none was takes a look at the [`Activity`], which every request touches anyhow.
pub struct Aside<'a, T> {
    futures: FuturesUnordered<BoxFuture<'a, T>>,
    activity: &'a Activity,
    waker: Waker,
}

impl<'a, T> Aside<'a, T> {
    /// An activity has one at a time.
    pub fn new(activity: &'a Arc<Activity>, futures: impl IntoIterator<Item = BoxFuture<'a, T>>) -> Self {
        activity.woken.store(true, Ordering::Release);
        Self { futures: futures.into_iter().collect(), activity, waker: Waker::from(Arc::clone(activity)) }
    }

    /// What the next of the futures returns that ends; waits for ever when there is none left.
    pub async fn next(&mut self) -> T {
        std::future::poll_fn(|cx| {
            self.activity.task.register(cx.waker());
            if !self.activity.woken.load(Ordering::Acquire) {
                return Poll::Pending;
            }
            // Before looking, so that a wake meanwhile makes for another look.
            self.activity.woken.swap(false, Ordering::AcqRel);
            match self.futures.poll_next_unpin(&mut Context::from_waker(&self.waker)) {
                Poll::Ready(Some(ended)) => {
                    // There may be more to look at.
                    self.activity.woken.store(true, Ordering::Release);
                    Poll::Ready(ended)
                }
                _ => Poll::Pending,
            }
        })
        .await
    }
}

impl Answers {
    fn lock(&self) -> std::sync::MutexGuard<'_, (u64, BTreeMap<u64, Instant>)> {
        self.unsent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request under way.
pub struct Busy(Arc<Activity>);

impl Drop for Busy {
    fn drop(&mut self) {
        let now_ms = u64::try_from(self.0.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.ended_ms.store(now_ms, Ordering::Relaxed);
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Busy {
    /// Counts the request as under way until its answer's body is sent, and remembers since when that is awaited.
    pub fn keep_until_sent(self, body: Body) -> Body {
        let number = {
            let mut unsent = self.0.answers.lock();
            unsent.0 += 1;
            let number = unsent.0;
            unsent.1.insert(number, Instant::now());
            number
        };
        if !self.0.answers.any.swap(true, Ordering::AcqRel) {
            self.0.told.wake();
        }
        Body::new(Answer { body, number, busy: self })
    }
}

/// A body that is missed until it is sent.
struct Answer {
    body: Body,
    number: u64,
    busy: Busy,
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.busy.0.answers.lock().1.remove(&self.number);
    }
}

impl HttpBody for Answer {
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
