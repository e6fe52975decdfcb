//! One instance with two Redis servers, and clock jumps: cases that need more control than a trial
//! with clients offers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use fred::cmd;
use fred::prelude::*;
use rushgate::config::bounds::{CLOCK_JUMP_LIMIT, FENCE_WAIT};
use rushgate::gate::clock;
use rushgate::gate::*;
use rushgate::reconciler::{Reconciler, StepOutcome};
use rushgate::redis::meta::Meta;
use rushgate_local_servers::{DataFolder, RedisOptions, RedisServer};
use sqlx::{Connection, PgConnection};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::cluster::eventually;
use crate::shop::*;

/// A local port that can be switched between two Redis servers. Existing connections stay with
/// their server.
struct Switch {
    port: u16,
    leads_to: Arc<AtomicU16>,
    /// Connections with a lower number are closed.
    ended: Arc<watch::Sender<usize>>,
    _serving: AbortOnDropHandle<()>,
}

impl Switch {
    async fn start(to: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (leads_to, ended) = (Arc::new(AtomicU16::new(to)), Arc::new(watch::Sender::new(0)));
        let (target, told) = (Arc::clone(&leads_to), Arc::clone(&ended));
        let serving = tokio::spawn(async move {
            for number in 0.. {
                let Ok((mut caller, _)) = listener.accept().await else { return };
                let (to, mut told) = (target.load(Ordering::SeqCst), told.subscribe());
                tokio::spawn(async move {
                    let Ok(mut redis) = TcpStream::connect(("127.0.0.1", to)).await else { return };
                    tokio::select! {
                        _ = copy_bidirectional(&mut caller, &mut redis) => {}
                        _ = told.wait_for(|ended| number < *ended) => {}
                    }
                });
            }
        });
        Self { port, leads_to, ended, _serving: AbortOnDropHandle::new(serving) }
    }
}

/// Waits until the gate decides a charge, which may take a while on a busy machine.
async fn decided(gate: &Gate, name: &str) {
    eventually("it is decided", || async { charge(gate, name).await.ok() }).await;
}

async fn charge(gate: &Gate, name: &str) -> Result<(), GateError> {
    let request = ChargeWallet { user_id: user(name), amount: 10 };
    gate.charge_wallet(request, None, soon()).await.map(|decided| assert!(decided.is_ok()))
}

/// A replica that has all data of the shop's Redis and has been promoted to a master.
async fn promoted_replica(of: &Shop) -> (RedisServer, Client) {
    let master = of.servers.redis_url.rsplit_once(':').unwrap().1;
    let mut options = RedisOptions::new(DataFolder::Scratch);
    options.extra_config = vec![format!("replicaof 127.0.0.1 {master}")];
    let replica = RedisServer::start(options).await.unwrap();
    let raw = rushgate::redis::connect(&replica.url()).await.unwrap();
    let seq = of.meta().await.seq;
    eventually("the replica has everything", || async {
        Meta::read(&raw, 0).await.is_ok_and(|meta| meta.seq == seq && !meta.absent()).then_some(())
    })
    .await;
    let _: String = raw.custom(cmd!("REPLICAOF"), vec!["NO", "ONE"]).await.unwrap();
    (replica, raw)
}

/// An instance decides on a promoted replica, while its connection for reads still leads to the old
/// master. What it finds there must not close the healthy gate.
#[tokio::test]
async fn a_reader_on_an_old_master_closes_nothing_but_that() {
    let shop = Shop::open().await;
    let old_port = shop.servers.redis_url.rsplit_once(':').unwrap().1.parse().unwrap();
    let switch = Switch::start(old_port).await;
    // Without PostgreSQL, nothing else tells the two apart.
    let servers = rushgate::config::Servers {
        redis_url: format!("redis://127.0.0.1:{}", switch.port),
        database_url: "postgres://nobody@127.0.0.1:1/nowhere".into(),
        ..shop.servers.clone()
    };
    let gate = Gate::with_limits(&servers, LIMITS).await.unwrap();
    decided(&gate, "ann").await;
    let (promoted, new) = promoted_replica(&shop).await;
    switch.leads_to.store(promoted.port(), Ordering::SeqCst);
    switch.ended.send_replace(1); // the writer's connection was made first
    eventually("decided on the promoted one", || async {
        let _ = charge(&gate, "ann").await; // the connection may not be back yet
        (Meta::read(&new, 0).await.unwrap().seq > shop.meta().await.seq).then_some(())
    })
    .await;

    let read = gate.balance(&user("ann")).await;
    assert!(matches!(read, Err(GateError::Unavailable(_))), "the old master is behind: {read:?}");
    assert_eq!(Meta::read(&new, 0).await.unwrap().state, "open", "the healthy cell");
    let old = shop.meta().await;
    assert_eq!(
        (old.state.as_str(), old.reason.as_deref()),
        ("closed", Some("Redis went back in time"))
    );
    decided(&gate, "ann").await;
}

/// The same epoch is open on two masters. The one that the leader reaches takes over after every
/// lease on the other has expired, and keeps the epoch. Instances on both sides know which one is
/// the gate.
#[tokio::test]
async fn a_promoted_replica_takes_over_after_a_wait_and_keeps_its_epoch() {
    let mut shop = Shop::open().await;
    shop.charge("ann", 1_000).await;
    shop.apply_all().await;
    let (promoted, new) = promoted_replica(&shop).await;
    let servers = rushgate::config::Servers { redis_url: promoted.url(), ..shop.servers.clone() };
    let there = Gate::with_limits(&servers, LIMITS).await.unwrap();
    let refused = charge(&there, "bob").await.unwrap_err();
    assert!(refused.to_string().contains("another Redis"), "{refused}");
    decided(&shop.gate, "ann").await;
    shop.apply_all().await; // so that the promoted one lacks what PostgreSQL has
    assert_eq!(Meta::read(&new, 0).await.unwrap().epoch, 1);

    let (began, mut leader) = (Instant::now(), Reconciler::connect(&servers, 0).await.unwrap());
    assert_eq!(leader.step().await.unwrap(), StepOutcome::Rebuilt(2));
    assert!(began.elapsed() >= FENCE_WAIT, "{:?}", began.elapsed());
    decided(&there, "bob").await;
    let refused = charge(&shop.gate, "ann").await.unwrap_err();
    assert!(refused.to_string().contains("in epoch 2"), "{refused}");
    assert_eq!(
        there.balance(&user("ann")).await.unwrap(),
        Some(1_010),
        "nothing that PostgreSQL had is lost"
    );
    assert!(
        matches!(shop.gate.balance(&user("ann")).await, Err(GateError::Unavailable(_))),
        "nor is it read"
    );

    // The first Redis takes over again after it has replicated everything: no rebuild.
    while leader.step().await.unwrap() != StepOutcome::Idle {}
    let master = promoted.port().to_string();
    let _: String = shop.raw.custom(cmd!("REPLICAOF"), vec!["127.0.0.1", &master]).await.unwrap();
    let seq = Meta::read(&new, 0).await.unwrap().seq;
    eventually("the first has everything", || async {
        let meta = Meta::read(&shop.raw, 0).await.ok()?;
        (meta.epoch == 2 && meta.seq == seq).then_some(())
    })
    .await;
    let _: String = shop.raw.custom(cmd!("REPLICAOF"), vec!["NO", "ONE"]).await.unwrap();
    let began = Instant::now();
    while shop.reconciler.step().await.unwrap() == StepOutcome::Superseded {}
    assert!(began.elapsed() >= FENCE_WAIT, "{:?}", began.elapsed());
    decided(&shop.gate, "ann").await;
    assert_eq!(shop.meta().await.epoch, 2, "the epoch goes on");
    let refused = charge(&there, "bob").await.unwrap_err();
    assert!(refused.to_string().contains("another Redis"), "{refused}");
    shop.apply_all().await;
    shop.assert_audit_clean().await;
}

/// A rebuild on the Redis that the leader has closed itself does not wait for leases.
#[tokio::test]
async fn a_rebuild_on_the_same_redis_opens_at_once() {
    let mut shop = Shop::open().await;
    shop.charge("ann", 1_000).await;
    let began = Instant::now();
    assert_eq!(shop.reconciler.rebuild_now().await.unwrap(), StepOutcome::Rebuilt(2));
    assert!(began.elapsed() < FENCE_WAIT, "{:?}", began.elapsed());
    decided(&shop.gate, "ann").await;
    shop.apply_all().await;
    shop.assert_audit_clean().await;
}

/// An epoch that an older version opened has no server recorded. It continues at once, and the
/// server is recorded from then on.
#[tokio::test]
async fn an_epoch_of_an_older_version_goes_on() {
    let mut shop = Shop::open().await;
    let forget = "UPDATE cell_cursors SET gate = NULL, gate_epoch = NULL";
    sqlx::query(forget).execute(&shop.pool).await.unwrap();
    let old = Gate::with_limits(&shop.servers, LIMITS).await.unwrap();
    decided(&old, "ann").await;
    assert_eq!(shop.reconciler.step().await.unwrap(), StepOutcome::Applied(1));
    let named: Option<String> =
        sqlx::query_scalar("SELECT gate FROM cell_cursors WHERE gate_epoch = epoch")
            .fetch_one(&shop.pool)
            .await
            .unwrap();
    assert_eq!(named, rushgate::redis::control::server_id(&shop.raw, 0).await.unwrap());
}

/// After a jump, the gate's clock stands still, far ahead. An operator sets it back, and a rebuild
/// does not restore the jump.
#[tokio::test]
async fn a_clock_that_jumped_is_shown_and_set_back() {
    let mut shop = Shop::open().await;
    let now = || jiff::Timestamp::now().as_millisecond();
    let ahead = now() + 30 * 86_400_000;
    shop.set_clock(ahead).await;
    assert_eq!(shop.charge("ann", 1_000).await.charged_at, ahead);
    shop.apply_all().await;

    let mut conn = PgConnection::connect(&shop.servers.database_url).await.unwrap();
    let shown = clock::show(&shop.raw, &mut conn, 0).await.unwrap();
    assert_eq!((shown.gate, shown.truth), (ahead, ahead));
    assert!((shown.server - now()).abs() < 60_000, "{shown}");
    assert!(
        shown.to_string().contains("the gate has used") && shown.to_string().contains("+2591"),
        "{shown}"
    );

    let reset = clock::reset(&shop.raw, &mut conn, 0).await.unwrap();
    assert!(reset.gate <= now() && reset.truth <= now(), "{reset}");
    let charged_at = shop.charge("ann", 1_000).await.charged_at;
    assert!(charged_at <= now(), "{charged_at}");
    shop.apply_all().await;
    assert_eq!(shop.reconciler.rebuild_now().await.unwrap(), StepOutcome::Rebuilt(2));
    assert!(shop.meta().await.clock_ms <= now(), "a rebuild does not bring the jump back");
    shop.assert_audit_clean().await;
    let again = clock::reset(&shop.raw, &mut conn, 0).await.unwrap();
    assert!(again.gate <= now(), "repeatable: {again}");
    assert!(CLOCK_JUMP_LIMIT < Duration::from_secs(86_400));
}

/// A restarted Redis is another server. An instance without traffic must not report ready before a
/// leader has named that server, and must decide as soon as it does.
#[tokio::test]
async fn an_instance_is_not_ready_before_a_restarted_redis_is_taken_over() {
    let mut shop = Shop::open().await;
    shop.charge("ann", 1_000).await;
    shop.apply_all().await;
    let gate = Arc::clone(&shop.gate);
    let status = async || Some(gate.status().await.ok()?.remove(0));
    assert_eq!(status().await.unwrap().state, "open");
    shop.restart_redis().await;
    let until = Instant::now() + 2 * FENCE_WAIT;
    while Instant::now() < until {
        let CellStatus { state, reason, .. } = eventually("Redis answers", status).await;
        assert_eq!(state, "closed", "{reason:?}");
    }
    let reason = status().await.unwrap().reason.unwrap();
    assert!(reason.contains("names another Redis"), "{reason}");

    let leading = tokio::spawn(async move {
        // Its connection may not be back yet.
        while !matches!(shop.reconciler.step().await, Ok(StepOutcome::Idle)) {}
        shop
    });
    eventually("it is ready", async || {
        let status = status().await?;
        let known = gate.known_troubles();
        (status.state == "open" && known.is_empty()).then_some(())
    })
    .await;
    charge(&gate, "ann").await.unwrap();
    let mut shop = leading.await.unwrap();
    shop.apply_all().await;
    assert_eq!(shop.meta().await.epoch, 1, "the epoch goes on");
    shop.assert_audit_clean().await;
}
