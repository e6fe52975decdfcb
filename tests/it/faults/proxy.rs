//! A TCP proxy between instances and Redis that keeps back, on demand, chosen calls or the answers to them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::{Setup, Trial};
use crate::cluster::{Settings, eventually};
use crate::history::client::Fleet;

/// Only calls of deciding scripts name idempotency records (`lua/gate.lua`): not reads, not the reconciler's.
const DECIDES: &str = ":idem:";

/// What happens to the chosen calls, and to all that follows on their connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Pass,
    /// Redis gets and runs them; nothing of what it answers comes back.
    HoldAnswers,
    /// They do not reach Redis.
    HoldCalls,
}

/// Where the proxy stands; connections compare rounds, so that what an earlier hold has marked is free again.
#[derive(Clone, Debug)]
struct Now {
    mode: Mode,
    /// What the chosen calls have in them.
    mark: Arc<str>,
    round: u64,
    /// Connections from before have ended.
    cuts: u64,
}

struct Shared {
    redis: SocketAddr,
    now: watch::Sender<Now>,
    held: AtomicUsize,
    /// Bytes that answers on all connections together bring in a second; 0: as many as come.
    bytes_per_sec: AtomicU64,
    /// One at a time passes on what it was answered, at that speed.
    slow_link: tokio::sync::Mutex<()>,
}

pub struct Proxy {
    shared: Arc<Shared>,
    port: u16,
    _accepting: AbortOnDropHandle<()>,
}

impl Proxy {
    pub async fn start(redis_port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let now = watch::Sender::new(Now { mode: Mode::Pass, mark: DECIDES.into(), round: 0, cuts: 0 });
        let redis = SocketAddr::from(([127, 0, 0, 1], redis_port));
        let shared = Arc::new(Shared {
            redis,
            now,
            held: AtomicUsize::new(0),
            bytes_per_sec: AtomicU64::new(0),
            slow_link: tokio::sync::Mutex::default(),
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Self { shared, port, _accepting: AbortOnDropHandle::new(accepting) }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// From now on answers come at this speed.
    pub fn throttle(&self, bytes_per_sec: u64) {
        self.shared.bytes_per_sec.store(bytes_per_sec, Ordering::SeqCst);
    }

    /// From now on calls that decide are run, and their answers are kept back.
    pub fn hold_answers(&self) {
        self.hold(Mode::HoldAnswers, DECIDES);
    }

    /// From now on calls that decide are kept back.
    pub fn hold_calls(&self) {
        self.hold(Mode::HoldCalls, DECIDES);
    }

    /// From now on calls with this in them are kept back.
    pub fn hold_calls_with(&self, mark: &str) {
        self.hold(Mode::HoldCalls, mark);
    }

    fn hold(&self, mode: Mode, mark: &str) {
        self.shared.held.store(0, Ordering::SeqCst);
        self.shared.now.send_modify(|now| {
            (now.mode, now.mark) = (mode, mark.into());
            now.round += 1;
        });
    }

    /// Waits until something is kept back.
    pub async fn until_held(&self) {
        let held = || async { (self.shared.held.load(Ordering::SeqCst) > 0).then_some(()) };
        eventually("the proxy keeps something back", held).await;
    }

    /// Lets through what was kept back, and everything from now on.
    pub fn release(&self) {
        self.shared.now.send_modify(|now| now.mode = Mode::Pass);
    }

    /// Ends all connections; what was kept back is lost. New connections are let through.
    pub fn cut(&self) {
        self.shared.now.send_modify(|now| {
            now.mode = Mode::Pass;
            now.cuts += 1;
        });
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((instance, _)) = accepted else { continue };
                connections.spawn(serve(instance, Arc::clone(&shared)));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// One connection, until an end closes it or it is cut.
async fn serve(instance: TcpStream, shared: Arc<Shared>) {
    let cuts = shared.now.borrow().cuts;
    let mut now = shared.now.subscribe();
    let Ok(redis) = TcpStream::connect(shared.redis).await else { return };
    let _ = (instance.set_nodelay(true), redis.set_nodelay(true));
    let (from_instance, to_instance) = instance.into_split();
    let (from_redis, to_redis) = redis.into_split();
    // 0: no chosen call was seen; else in which round it was.
    let marked = AtomicU64::new(0);
    tokio::select! {
        // A cut ends what was kept back before that notices.
        biased;
        _ = now.wait_for(|now| now.cuts > cuts) => {}
        () = calls(from_instance, to_redis, &shared, &marked, cuts) => {}
        () = answers(from_redis, to_instance, &shared, &marked, cuts) => {}
    }
}

async fn calls(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    shared: &Shared,
    marked: &AtomicU64,
    cuts: u64,
) {
    let mut seen = Vec::new();
    let mut bytes = vec![0; 64 * 1024];
    while let Ok(n @ 1..) = from.read(&mut bytes).await {
        // The mark may be split over two reads.
        seen.extend_from_slice(&bytes[..n]);
        let Now { mark, round, .. } = shared.now.borrow().clone();
        let chosen = seen.windows(mark.len()).any(|part| part == mark.as_bytes());
        seen.drain(..seen.len().saturating_sub(mark.len() - 1));
        if chosen {
            marked.store(round, Ordering::SeqCst);
        }
        shared.pass(Mode::HoldCalls, marked).await;
        if shared.was_cut(cuts) || to.write_all(&bytes[..n]).await.is_err() {
            return;
        }
    }
}

async fn answers(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    shared: &Shared,
    marked: &AtomicU64,
    cuts: u64,
) {
    let mut bytes = vec![0; 64 * 1024];
    while let Ok(n @ 1..) = from.read(&mut bytes).await {
        shared.pass(Mode::HoldAnswers, marked).await;
        shared.take_time(n).await;
        if shared.was_cut(cuts) || to.write_all(&bytes[..n]).await.is_err() {
            return;
        }
    }
}

impl Shared {
    /// Whether a connection from before this many cuts has ended. A cut also releases what is kept back, and a connection
    /// that is being polled in that moment may notice the release first.
    fn was_cut(&self, cuts: u64) -> bool {
        self.now.borrow().cuts > cuts
    }

    /// As long as a slow link takes for so many bytes.
    async fn take_time(&self, bytes: usize) {
        let bytes_per_sec = self.bytes_per_sec.load(Ordering::SeqCst);
        if bytes_per_sec > 0 {
            let _one_at_a_time = self.slow_link.lock().await;
            tokio::time::sleep(Duration::from_secs_f64(bytes as f64 / bytes_per_sec as f64)).await;
        }
    }

    /// Returns unless, or as soon as no longer, `held` is the mode and the connection has been marked in this round.
    async fn pass(&self, held: Mode, marked: &AtomicU64) {
        let mut now = self.now.subscribe();
        let holds = |now: &Now| now.mode == held && marked.load(Ordering::SeqCst) == now.round;
        if holds(&now.borrow()) {
            self.held.fetch_add(1, Ordering::SeqCst);
            let _ = now.wait_for(|now| !holds(now)).await; // the sender is in `self`
        }
    }
}

/// A shop with instances that reach Redis as they should, and one that does so through a proxy.
pub struct Behind {
    pub proxy: Proxy,
    /// Of instances behind the proxy.
    pub settings: Settings,
}

impl Behind {
    /// Clients know one instance (0) with a way of its own, and one (1) behind the proxy, with these settings on top.
    pub async fn begin(seed: u64, setup: Setup, changes: &[(&'static str, &str)]) -> (Trial, Self) {
        let (cluster, settings) = Trial::servers(setup.private, setup.settings).await;
        let proxy = Proxy::start(cluster.redis.port()).await;
        let changed = settings.with("RUSHGATE_REDIS_URL", proxy.url());
        let changed = changes.iter().fold(changed, |all, (name, value)| all.with(name, *value));
        let behind = Self { settings: changed, proxy };
        let fleet = Fleet::start(&[&settings, &behind.settings]).await;
        (Trial::on(seed, cluster, settings, fleet, setup.mix).await, behind)
    }
}
