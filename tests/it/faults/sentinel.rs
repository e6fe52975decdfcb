//! Sentinel promotes a replica that lacks the last writes.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fred::prelude::*;
use nix::sys::signal::Signal;
use rushgate_local_servers::{DataFolder, RedisOptions, RedisServer, free_ports};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::{Outcome, Setup, Trial};
use crate::cluster::{Cluster, Instance, Private, Settings, eventually};
use crate::history::client::Fleet;
use crate::history::{aof, collect};

/// The Sentinel's name for the shop's Redis.
const NAME: &str = "shop";
/// Time from the master's death to the first success: Sentinel detects the failure, elects and
/// promotes, and then the gate is rebuilt.
const FAILOVER_LIMIT: Duration = Duration::from_secs(30);

/// The servers beside the cluster's Redis, which is the master.
struct Watched {
    link: Link,
    replica: RedisServer,
    sentinel: Sentinel,
}

impl Watched {
    /// Starts a replica that is in sync with the master, and a Sentinel that knows both.
    async fn beside(cluster: &Cluster, replica_config: &[&str]) -> Self {
        let link = Link::start(cluster.redis.port()).await;
        let mut options = RedisOptions::new(DataFolder::Scratch);
        options.extra_config = collect::redis_config();
        options.extra_config.push(format!("replicaof 127.0.0.1 {}", link.port));
        options.extra_config.extend(replica_config.iter().map(ToString::to_string));
        let replica = RedisServer::start(options).await.unwrap();
        let client = rushgate::redis::connect(&replica.url()).await.unwrap();
        eventually("the replica follows, and writes down what it gets", || async {
            let info: String =
                client.custom(fred::cmd!("INFO"), Vec::<String>::new()).await.unwrap();
            let all = ["master_link_status:up", "aof_enabled:1", "aof_rewrite_in_progress:0"];
            all.iter().all(|line| info.lines().any(|said| said == *line)).then_some(())
        })
        .await;
        let sentinel = Sentinel::start(replica.folder(), cluster.redis.port()).await;
        Self { link, replica, sentinel }
    }

    fn url(&self) -> String {
        format!("redis-sentinel://127.0.0.1:{}/0?sentinelServiceName={NAME}", self.sentinel.port)
    }

    /// Kills the master, waits until the replica is promoted, and makes it the trial's Redis.
    async fn fail_over(self, trial: &mut Trial) -> Sentinel {
        let Self { link, replica, sentinel } = self;
        trial.cluster.redis.kill().await;
        sentinel.knows(&format!("status=ok,address=127.0.0.1:{}", replica.port())).await;
        drop(link);
        trial.elsewhere.extend(aof::entries(trial.cluster.redis.folder()));
        trial.cluster.raw = rushgate::redis::connect(&replica.url()).await.unwrap();
        trial.cluster.redis = replica;
        sentinel
    }
}

/// A TCP proxy between a replica and its master.
struct Link {
    port: u16,
    lags: watch::Sender<bool>,
    _serving: AbortOnDropHandle<()>,
}

impl Link {
    async fn start(master_port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (port, lags) = (listener.local_addr().unwrap().port(), watch::Sender::new(false));
        let told = lags.subscribe();
        let serving = tokio::spawn(async move {
            // A replica has one connection at a time.
            while let Ok((replica, _)) = listener.accept().await {
                if let Ok(master) = TcpStream::connect(("127.0.0.1", master_port)).await {
                    pass(replica, master, told.clone()).await;
                }
            }
        });
        Self { port, lags, _serving: AbortOnDropHandle::new(serving) }
    }

    /// From now on, none of the master's writes reach the replica.
    fn lag(&self) {
        self.lags.send_replace(true);
    }
}

/// Serves a connection until either end closes it.
async fn pass(replica: TcpStream, master: TcpStream, mut lags: watch::Receiver<bool>) {
    let (mut from_replica, mut to_replica) = replica.into_split();
    let (mut from_master, mut to_master) = master.into_split();
    let written = async {
        let mut bytes = vec![0; 64 * 1024];
        while let Ok(n @ 1..) = from_master.read(&mut bytes).await {
            // Once the link lags, data in it stays lost: the replica must not receive it when the
            // master has died.
            if lags.wait_for(|lags| !lags).await.is_err()
                || to_replica.write_all(&bytes[..n]).await.is_err()
            {
                return;
            }
        }
    };
    tokio::select! {
        () = written => {}
        _ = tokio::io::copy(&mut from_replica, &mut to_master) => {}
    }
}

/// `redis-server --sentinel`, with a quorum of one.
struct Sentinel {
    port: u16,
    process: Child,
}

impl Sentinel {
    async fn start(folder: &Path, master_port: u16) -> Self {
        let folder = folder.join("sentinel");
        std::fs::create_dir(&folder).unwrap();
        let port = free_ports(1).unwrap()[0];
        let config = folder.join("sentinel.conf");
        let lines = format!(
            "bind 127.0.0.1\nport {port}\ndir {}\nlogfile {}\nsentinel monitor {NAME} 127.0.0.1 {master_port} 1\n\
             sentinel down-after-milliseconds {NAME} 500\nsentinel failover-timeout {NAME} 60000\n",
            folder.display(),
            folder.join("log").display()
        );
        std::fs::write(&config, lines).unwrap();
        // Like the other test processes, it is killed with the thread that started it.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", "redis-server"]).arg(config).arg("--sentinel");
        let process = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let sentinel = Self { port, process };
        sentinel.knows("slaves=1").await;
        sentinel
    }

    /// Waits until the Sentinel reports this about the shop's Redis.
    async fn knows(&self, what: &str) {
        let ask = || async {
            let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await.ok()?;
            stream.write_all(b"INFO sentinel\r\n").await.ok()?;
            let (mut answer, mut bytes) = (String::new(), [0; 4096]);
            while !answer.contains("sentinels=") {
                let read =
                    tokio::time::timeout(Duration::from_secs(1), stream.read(&mut bytes)).await;
                let n = read.ok()?.ok().filter(|n| *n > 0)?;
                answer += &String::from_utf8_lossy(&bytes[..n]);
            }
            answer.contains(what).then_some(())
        };
        eventually(&format!("the Sentinel says {what}"), ask).await;
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        let _ = self.process.kill(); // may have exited already
        let _ = self.process.wait();
    }
}

/// A trial whose API instances and follower get the Redis address from a Sentinel.
async fn begin(
    seed: u64,
    changes: Vec<(&'static str, String)>,
    replica: &[&str],
) -> (Trial, Instance, Watched) {
    let redis_config = vec!["repl-diskless-sync-delay 0".to_owned()];
    let private = Private { redis_config, ..Private::default() };
    let Setup { instances, mix, .. } = Setup::default();
    let (mut cluster, settings) = Trial::servers(private, changes).await;
    let watched = Watched::beside(&cluster, replica).await;
    cluster.settings = cluster.settings.with("RUSHGATE_REDIS_URL", watched.url());
    let follower = cluster.start_roles("reconciler,relay,scheduler").await;
    let settings: Settings =
        settings.with("RUSHGATE_REDIS_URL", watched.url()).with("RUSHGATE_ROLES", "api");
    let fleet = Fleet::start(&vec![&settings; instances]).await;
    (Trial::on(seed, cluster, settings, fleet, mix).await, follower, watched)
}

/// The common part for both settings of `RUSHGATE_ACK`. Returns the trial, the time since which
/// something may be lost, and the processes that must stay alive.
async fn lagging_replica(
    seed: u64,
    changes: Vec<(&'static str, String)>,
) -> (Trial, u64, (Instance, Sentinel)) {
    let (mut trial, follower, watched) = begin(seed, changes, &[]).await;
    trial.a_while().await;
    let since_us = trial.settled().await;
    watched.link.lag();
    trial.a_while().await;
    let mut epoch = 1;
    if trial.rng.bool() {
        // The replica lags so far behind that it does not know the current epoch.
        trial.cluster.settings.run(&["rebuild"]).await.assert_success();
        epoch = trial.rebuilt_after(epoch).await;
        trial.a_while().await;
    }
    if trial.rng.bool() {
        // PostgreSQL lags too. With `RUSHGATE_ACK=truth`, each change now takes the whole truth
        // timeout.
        follower.freeze().await;
        let more = trial.rng.usize(3..30);
        trial.load.until_more(more, super::trial::PATIENCE).await;
    }
    let killed = Instant::now();
    let sentinel = watched.fail_over(&mut trial).await;
    follower.signal(Signal::SIGCONT);
    let opened = trial.rebuilt_after(epoch).await;
    assert!(opened > epoch, "what was rolled back was refused, and rebuilt");
    trial.load.until_more(3, FAILOVER_LIMIT).await;
    trial.recovery = Some(killed.elapsed());
    (trial, since_us, (follower, sentinel))
}

/// `RUSHGATE_ACK=gate`: what neither the replica nor PostgreSQL had is lost, and listed.
pub async fn lagging_replica_promoted(seed: u64) -> Outcome {
    let short = ("RUSHGATE_TRUTH_TIMEOUT_MS", "500".to_owned());
    let (mut trial, since_us, _alive) = lagging_replica(seed, vec![short]).await;
    trial.forgive_since(since_us);
    trial.finish_with_losses().await
}

/// `RUSHGATE_ACK=truth`: nothing that was acknowledged is lost.
pub async fn lagging_replica_promoted_ack_truth(seed: u64) -> Outcome {
    let changes =
        vec![("RUSHGATE_TRUTH_TIMEOUT_MS", "500".to_owned()), ("RUSHGATE_ACK", "truth".to_owned())];
    let (mut trial, since_us, _alive) = lagging_replica(seed, changes).await;
    trial.forgive_reads_since(since_us);
    let (outcome, report) = trial.finish().await;
    assert_eq!(report.gone, Vec::<String>::new(), "what was acknowledged is there");
    outcome
}

/// The replica runs without `appendfsync always`, so it could lose what it acknowledges. Instances
/// in `strict` mode decide nothing there until that is corrected.
pub async fn unsafe_replica_promoted(seed: u64) -> Outcome {
    let (mut trial, _follower, watched) = begin(seed, vec![], &["appendfsync everysec"]).await;
    trial.a_while().await;
    let since_us = trial.settled().await;
    watched.link.lag();
    trial.a_while().await;
    let _sentinel = watched.fail_over(&mut trial).await;
    trial.rebuilt_after(1).await;
    for instance in trial.fleet.all() {
        eventually("/readyz says why", || async {
            let (status, body) = instance.readiness().await;
            (status == 503
                && body["reasons"][0].to_string().contains("`appendfsync` is `everysec`"))
            .then_some(())
        })
        .await;
    }
    let (refused_us, before) = (trial.load.now_us(), trial.cluster.meta().await.seq);
    let refusals = || trial.load.troubles(refused_us).get("gate-unavailable").copied().unwrap_or(0);
    eventually("clients are told", || async { (refusals() > 20).then_some(()) }).await;
    assert_eq!(trial.cluster.meta().await.seq, before, "nothing was decided");

    let _: () = trial.cluster.raw.config_set("appendfsync", "always").await.unwrap();
    trial.serves_within(Duration::from_secs(5)).await;
    trial.forgive_since(since_us);
    trial.finish_with_losses().await
}
