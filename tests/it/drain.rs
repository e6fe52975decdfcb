//! A rolling restart behind a load balancer that probes `/readyz` once a second, as usual ones do.
//! No request may be refused.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use crate::cluster::*;

/// Probe interval, and timeout of each probe.
const PROBE: Duration = Duration::from_secs(1);
/// Requests per second, each on a new connection.
const RATE: u32 = 50;
/// Time limit of a request on a busy machine.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// An instance as the balancer sees it.
struct Backend {
    api: String,
    ops: String,
    ready: AtomicBool,
    /// Set by the test when it has stopped the instance and the process has ended.
    gone: AtomicBool,
}

#[derive(Default)]
struct Balancer {
    backends: Mutex<Vec<Arc<Backend>>>,
    next: AtomicUsize,
}

impl Balancer {
    /// Adds an instance and starts to probe it.
    fn add(self: &Arc<Self>, instance: &Instance) -> (Arc<Backend>, AbortOnDropHandle<()>) {
        let (api, ops) = (instance.listens_on().to_owned(), instance.operations().to_owned());
        let backend = Arc::new(Backend { api, ops, ready: false.into(), gone: false.into() });
        self.backends.lock().unwrap().push(Arc::clone(&backend));
        let probed = Arc::clone(&backend);
        let probing = tokio::spawn(async move {
            while !probed.gone.load(Ordering::SeqCst) {
                let answer = tokio::time::timeout(PROBE, ask(&probed.ops, "/readyz")).await;
                let ready = matches!(answer, Ok(Ok(200)));
                probed.ready.store(ready, Ordering::SeqCst);
                tokio::time::sleep(PROBE).await;
            }
        });
        (backend, AbortOnDropHandle::new(probing))
    }

    /// Sends a request to the next instance whose last probe found it ready.
    async fn send(&self) -> Result<u16, String> {
        let backend = {
            let backends = self.backends.lock().unwrap();
            let ready: Vec<_> =
                backends.iter().filter(|backend| backend.ready.load(Ordering::SeqCst)).collect();
            let turn = self.next.fetch_add(1, Ordering::Relaxed);
            ready.get(turn % ready.len().max(1)).map(|backend| Arc::clone(backend))
        };
        let backend = backend.ok_or("no instance is ready")?;
        let asking = tokio::time::timeout(ANSWER_LIMIT, ask(&backend.api, "/v1/products/mug"));
        asking.await.map_err(|_| "no answer in time".to_owned())?.map_err(|error| error.to_string())
    }
}

/// Sends a GET on a new connection and returns the status.
async fn ask(address: &str, path: &str) -> std::io::Result<u16> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let text = String::from_utf8_lossy(&answer);
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
    status.ok_or_else(|| std::io::Error::other("cut off before an answer"))
}

/// Sends requests at the rate until `stop`. Returns the number of successes and the failures.
async fn traffic(balancer: Arc<Balancer>, stop: Arc<AtomicBool>) -> (usize, Vec<String>) {
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / RATE);
    let mut sent = JoinSet::new();
    while !stop.load(Ordering::SeqCst) {
        ticks.tick().await;
        let balancer = Arc::clone(&balancer);
        sent.spawn(async move { balancer.send().await });
    }
    let outcomes = sent.join_all().await;
    let failed =
        outcomes.iter().filter(|outcome| **outcome != Ok(200)).map(|o| format!("{o:?}")).collect();
    (outcomes.len(), failed)
}

#[tokio::test]
async fn a_rolling_restart_behind_a_balancer_refuses_nobody() {
    let cluster = Cluster::servers().await;
    let settings = cluster.settings.without("RUSHGATE_DRAIN_SECS"); // the default
    let first = Instance::ready(&settings).await;
    first.done(&Request::put_product("mug", 1_000, 10)).await;
    let second = Instance::ready(&settings).await;
    let balancer = Arc::new(Balancer::default());
    let (mut probes, mut rest) = (Vec::new(), Vec::new());
    for instance in [first, second] {
        let (backend, probing) = balancer.add(&instance);
        probes.push(probing);
        rest.push((instance, backend));
    }
    let both = || rest.iter().all(|(_, backend)| backend.ready.load(Ordering::SeqCst));
    eventually("the balancer has found both", || std::future::ready(both().then_some(()))).await;
    let stop = Arc::new(AtomicBool::new(false));
    let traffic = tokio::spawn(traffic(Arc::clone(&balancer), Arc::clone(&stop)));

    // Replaces one instance after the other, as operations.md describes.
    for (old, backend) in std::mem::take(&mut rest) {
        let asked = Instant::now();
        old.signal(Signal::SIGTERM);
        eventually("it says that it is not ready, and serves on", || async {
            let (status, body) = old.readiness().await;
            (status == 503 && body["reasons"][0] == "this process is stopping").then_some(())
        })
        .await;
        assert_eq!(
            ask(&backend.api, "/v1/products/mug").await.unwrap(),
            200,
            "its port stays open"
        );
        old.gone_within(Duration::from_secs(15)).await;
        assert!(asked.elapsed() >= Duration::from_secs(5), "{:?}", asked.elapsed());
        backend.gone.store(true, Ordering::SeqCst);
        let new = Instance::ready(&settings).await;
        let (backend, probing) = balancer.add(&new);
        probes.push(probing);
        eventually("the balancer has found it", || {
            std::future::ready(backend.ready.load(Ordering::SeqCst).then_some(()))
        })
        .await;
        rest.push((new, backend));
    }
    stop.store(true, Ordering::SeqCst);
    let (sent, failed) = traffic.await.unwrap();
    println!("{sent} requests, {} failed", failed.len());
    assert!(sent > 10 * RATE as usize / 2, "{sent}");
    assert!(failed.is_empty(), "{} of {sent}: {failed:#?}", failed.len());
    for (instance, _) in rest {
        // A second signal means: stop without waiting.
        instance.signal(Signal::SIGTERM);
        eventually("it is about to stop", || {
            std::future::ready(instance.said("requests are accepted for 5 s more").then_some(()))
        })
        .await;
        instance.signal(Signal::SIGTERM);
        instance.ended().await;
    }
    cluster.settings.run(&["audit", "--wait", "30s"]).await.assert_success();
}
