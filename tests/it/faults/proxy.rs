//! A TCP proxy between instances and Redis that can hold back selected calls or their replies.
//!
//! A control value ([`Now`]) tells all connections which calls to hold. A connection that has seen
//! such a call is marked with the current round, and holds everything after it until the mode or
//! the round changes.

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

/// Only calls of deciding scripts name idempotency records (`lua/shared/gate.lua`); reads and the
/// reconciler's calls do not.
const DECIDES: &str = ":idem:";

/// What happens to the selected calls and to everything after them on the same connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Pass,
    /// Redis runs the calls, but their replies are held back.
    HoldAnswers,
    /// The calls do not reach Redis.
    HoldCalls,
}

/// The proxy's control value. Each hold has a new round, so marks from an earlier hold have no
/// effect.
#[derive(Clone, Debug)]
struct Now {
    mode: Mode,
    /// Text that identifies the selected calls.
    mark: Arc<str>,
    round: u64,
    /// Number of cuts. Connections from before a cut are closed.
    cuts: u64,
}

struct Shared {
    redis: SocketAddr,
    now: watch::Sender<Now>,
    held: AtomicUsize,
    /// Bandwidth of replies in bytes per second, shared by all connections. 0 means unlimited.
    bytes_per_sec: AtomicU64,
    /// Serialises the connections' replies on the slow link.
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
        let now =
            watch::Sender::new(Now { mode: Mode::Pass, mark: DECIDES.into(), round: 0, cuts: 0 });
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

    /// Limits the bandwidth of replies from now on.
    pub fn throttle(&self, bytes_per_sec: u64) {
        self.shared.bytes_per_sec.store(bytes_per_sec, Ordering::SeqCst);
    }

    /// Lets deciding calls run from now on, but holds their replies back.
    pub fn hold_answers(&self) {
        self.hold(Mode::HoldAnswers, DECIDES);
    }

    /// Holds deciding calls back from now on.
    pub fn hold_calls(&self) {
        self.hold(Mode::HoldCalls, DECIDES);
    }

    /// Holds calls that contain `mark` back from now on.
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

    /// Waits until something is held back.
    pub async fn until_held(&self) {
        let held = || async { (self.shared.held.load(Ordering::SeqCst) > 0).then_some(()) };
        eventually("the proxy keeps something back", held).await;
    }

    /// Forwards what was held back, and everything from now on.
    pub fn release(&self) {
        self.shared.now.send_modify(|now| now.mode = Mode::Pass);
    }

    /// Closes all connections and drops what was held back. New connections pass.
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

/// Serves one connection until either end closes it or it is cut.
async fn serve(instance: TcpStream, shared: Arc<Shared>) {
    let cuts = shared.now.borrow().cuts;
    let mut now = shared.now.subscribe();
    let Ok(redis) = TcpStream::connect(shared.redis).await else { return };
    let _ = (instance.set_nodelay(true), redis.set_nodelay(true));
    let (from_instance, to_instance) = instance.into_split();
    let (from_redis, to_redis) = redis.into_split();
    // The round in which a selected call was seen; 0 if none was.
    let marked = AtomicU64::new(0);
    tokio::select! {
        // A cut must win over the release of held data that comes with it.
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
        // The mark may be split between two reads.
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
    /// Whether a connection that was opened after this many cuts has been cut since. A cut also
    /// releases held data, and a connection that is being polled may notice the release first.
    fn was_cut(&self, cuts: u64) -> bool {
        self.now.borrow().cuts > cuts
    }

    /// Waits as long as a slow link would take for this many bytes.
    async fn take_time(&self, bytes: usize) {
        let bytes_per_sec = self.bytes_per_sec.load(Ordering::SeqCst);
        if bytes_per_sec > 0 {
            let _one_at_a_time = self.slow_link.lock().await;
            tokio::time::sleep(Duration::from_secs_f64(bytes as f64 / bytes_per_sec as f64)).await;
        }
    }

    /// Waits while `held` is the mode and the connection is marked with the current round.
    async fn pass(&self, held: Mode, marked: &AtomicU64) {
        let mut now = self.now.subscribe();
        let holds = |now: &Now| now.mode == held && marked.load(Ordering::SeqCst) == now.round;
        if holds(&now.borrow()) {
            self.held.fetch_add(1, Ordering::SeqCst);
            let _ = now.wait_for(|now| !holds(now)).await; // the sender lives in `self`
        }
    }
}

/// Settings for instances that reach Redis through a proxy.
pub struct Behind {
    pub proxy: Proxy,
    /// The settings of instances behind the proxy.
    pub settings: Settings,
}

impl Behind {
    /// Starts a trial. Clients know one instance (0) with a direct connection and one (1) behind
    /// the proxy, with `changes` to its settings.
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
