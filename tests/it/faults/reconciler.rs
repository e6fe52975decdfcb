//! Reconcilers that are killed or frozen at work, and two that lead at once.

use fred::prelude::*;
use nix::sys::signal::Signal;
use sqlx::{Connection, PgConnection, PgPool};

use super::{Outcome, Trial, at_length};
use crate::cluster::{Cluster, Instance, LEADS, Private, eventually};
use crate::history::client::{Fleet, Mix};
use crate::history::collect;
use crate::truth::{execute, number};

/// Kills under load. There are more if none of them hit a transaction.
const KILLS: usize = 6;
const KILLS_AT_MOST: usize = 40;
const ROUNDS_AT_MOST: usize = 40;
/// Logged by a reconciler that has lost its session.
const STARTS_OVER: &str = "the reconciler starts over";

/// An instance that is only a reconciler, separate from those that serve clients.
struct Apart {
    instance: Instance,
    /// Its connections to Redis, by their names in `CLIENT LIST`.
    redis_clients: Vec<String>,
}

impl Apart {
    async fn start(cluster: &Cluster) -> Self {
        let before = redis_clients(cluster).await;
        let instance = cluster.start_roles("reconciler").await;
        let mut redis_clients = redis_clients(cluster).await;
        redis_clients.retain(|client| !before.contains(client));
        assert!(!redis_clients.is_empty());
        Self { instance, redis_clients }
    }

    /// How often its log contains this text.
    fn count(&self, text: &str) -> usize {
        self.instance.log().iter().filter(|line| line.contains(text)).count()
    }

    /// How often it has become the leader.
    fn terms(&self) -> usize {
        self.count(LEADS)
    }
}

async fn redis_clients(cluster: &Cluster) -> Vec<String> {
    let list = client_command(cluster, &["LIST"]).await;
    list.lines().filter_map(|line| line.split(' ').next().map(str::to_owned)).collect()
}

async fn client_command(cluster: &Cluster, args: &[&'static str]) -> String {
    cluster.raw.custom(fred::cmd!("CLIENT"), args.to_vec()).await.unwrap()
}

/// A shop in which only these instances reconcile; the first one leads. The SQL in `prepare` runs
/// on the empty database.
async fn begin(seed: u64, reconcilers: usize, prepare: &'static str) -> (Trial, Vec<Apart>) {
    let private = Private { redis_config: collect::redis_config(), ..Private::default() };
    let cluster = Cluster::with(private).await;
    execute(&cluster.pool, prepare).await;
    let mut apart = Vec::new();
    for _ in 0..reconcilers {
        apart.push(Apart::start(&cluster).await);
        eventually("the first one leads", || async { (apart[0].terms() > 0).then_some(()) }).await;
    }
    let settings = cluster
        .settings
        .with("RUSHGATE_ROLES", "api,relay")
        .with("RUSHGATE_REQUEST_TIMEOUT_MS", "3000")
        // While no reconciler runs, clients should not spend their time waiting for PostgreSQL.
        .with("RUSHGATE_TRUTH_TIMEOUT_MS", "300");
    let fleet = Fleet::start(&[&settings, &settings]).await;
    (Trial::on(seed, cluster, settings, fleet, Mix::default()).await, apart)
}

/// Epoch, number and tip of the last entry that PostgreSQL has applied.
async fn cursor(pool: &PgPool) -> (u64, u64, String) {
    let row: (i64, i64, String) =
        sqlx::query_as("SELECT epoch, seq, tip FROM cell_cursors").fetch_one(pool).await.unwrap();
    (row.0.cast_unsigned(), row.1.cast_unsigned(), row.2)
}

/// Sessions that hold the cell's leader lock.
async fn leading_sessions(pool: &PgPool) -> Vec<i32> {
    // The lock's key begins with "rgce" in ASCII.
    let sql = "SELECT pid FROM pg_locks l JOIN pg_database d ON d.oid = l.database AND d.datname = current_database()
        WHERE locktype = 'advisory' AND granted AND classid = x'72676365'::int::oid";
    sqlx::query_scalar(sql).fetch_all(pool).await.unwrap()
}

/// Whether the leader's session has an open transaction that waits for its next statement or for
/// data from the leader.
async fn waits_for_its_leader(pool: &PgPool) -> bool {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
        AND application_name = 'rushgate-reconciler' AND (state = 'idle in transaction'
            OR state = 'active' AND wait_event = 'ClientRead')";
    number(pool, sql).await > 0
}

/// Keeps the reconciler's transaction open when everything but the outbox has been written.
struct Held(PgConnection);

impl Held {
    async fn in_transaction(cluster: &Cluster) -> Self {
        let mut session =
            PgConnection::connect(cluster.settings.get("RUSHGATE_DATABASE_URL")).await.unwrap();
        let lock = "BEGIN; LOCK TABLE outbox IN SHARE ROW EXCLUSIVE MODE";
        sqlx::raw_sql(lock).execute(&mut session).await.unwrap();
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
            AND application_name = 'rushgate-reconciler' AND wait_event_type = 'Lock'";
        eventually("the reconciler waits inside its transaction", || async {
            (number(&cluster.pool, waiting).await == 1).then_some(())
        })
        .await;
        Self(session)
    }

    async fn release(self) {
        self.0.close().await.unwrap();
    }
}

/// kill -9 the reconciler at random moments, many times.
pub async fn reconciler_killed(seed: u64) -> Outcome {
    let (mut trial, mut apart) = begin(seed, 1, "").await;
    let pool = trial.cluster.pool.clone();
    let (mut kills, mut inside) = (0, 0);
    while kills < KILLS || inside == 0 {
        assert!(kills < KILLS_AT_MOST, "no kill has hit a transaction");
        trial.a_while().await;
        let Apart { instance, .. } = apart.remove(0);
        // Freezes it first, so that the test can see what it was doing.
        instance.freeze().await;
        inside += usize::from(waits_for_its_leader(&pool).await);
        instance.kill().await;
        kills += 1;
        apart.push(Apart::start(&trial.cluster).await);
    }
    println!("{inside} of {kills} kills have hit a transaction");
    applied_once(trial).await
}

/// Ends the trial: an interrupted transaction left nothing, a committed one is not repeated, and
/// nothing was rebuilt.
async fn applied_once(trial: Trial) -> Outcome {
    let (outcome, _) = trial.finish().await;
    assert_eq!(outcome.epochs, 1, "nothing was rebuilt");
    outcome
}

/// kill -9 the reconciler when everything but COMMIT is done.
pub async fn reconciler_killed_before_commit(seed: u64) -> Outcome {
    let (mut trial, mut apart) = begin(seed, 1, "").await;
    let pool = trial.cluster.pool.clone();
    for _ in 0..2 {
        trial.a_while().await;
        let held = Held::in_transaction(&trial.cluster).await;
        let (_, before, _) = cursor(&pool).await;
        apart.remove(0).instance.kill().await;
        held.release().await;
        nobody_leads(&pool).await;
        assert_eq!(cursor(&pool).await.1, before, "what was not committed is gone");
        let meta = trial.cluster.meta().await;
        assert!(meta.applied <= before && before < meta.seq, "{meta:?}");
        apart.push(Apart::start(&trial.cluster).await);
    }
    applied_once(trial).await
}

async fn nobody_leads(pool: &PgPool) {
    eventually("the session of the dead leader ends", || async {
        leading_sessions(pool).await.is_empty().then_some(())
    })
    .await;
}

/// kill -9 the reconciler when PostgreSQL has committed, but before the gate is told and the log is
/// trimmed.
pub async fn reconciler_killed_after_commit(seed: u64) -> Outcome {
    let (mut trial, mut apart) = begin(seed, 1, "").await;
    let pool = trial.cluster.pool.clone();
    for _ in 0..2 {
        trial.a_while().await;
        let held = Held::in_transaction(&trial.cluster).await;
        let (_, before, _) = cursor(&pool).await;
        // From now on scripts wait in Redis. Those of a client that disconnects are dropped.
        client_command(&trial.cluster, &["PAUSE", "20000", "WRITE"]).await;
        held.release().await;
        let committed = async || Some(cursor(&pool).await.1).filter(|now| *now != before);
        let after = eventually("PostgreSQL commits", committed).await;
        let Apart { instance, redis_clients: gone } = apart.remove(0);
        instance.kill().await;
        let let_go = async || {
            let there = redis_clients(&trial.cluster).await;
            (!gone.iter().any(|client| there.contains(client))).then_some(())
        };
        eventually("Redis lets go of the dead one", let_go).await;
        client_command(&trial.cluster, &["UNPAUSE"]).await;
        trial.a_while().await;
        let told = trial.cluster.meta().await.applied;
        assert!(told < after, "the gate was told of {told}, PostgreSQL has {after}");
        apart.push(Apart::start(&trial.cluster).await);
    }
    applied_once(trial).await
}

/// The leader is frozen during a transaction and loses its session, and the standby takes over.
/// When the old leader resumes, it finds its transaction gone and becomes the standby.
pub async fn leader_frozen(seed: u64) -> Outcome {
    let (mut trial, mut apart) = begin(seed, 2, "").await;
    let pool = trial.cluster.pool.clone();
    for _ in 0..2 {
        trial.a_while().await;
        let terms = apart[1].terms();
        let held = Held::in_transaction(&trial.cluster).await;
        let [session] = leading_sessions(&pool).await[..] else { panic!("not one leader") };
        let (_, before, _) = cursor(&pool).await;
        apart[0].instance.freeze().await;
        held.release().await;
        eventually("its transaction stands open", async || {
            waits_for_its_leader(&pool).await.then_some(())
        })
        .await;
        trial.a_while().await;
        assert_eq!(cursor(&pool).await.1, before, "nobody can pass it");
        lose(&pool, session).await;
        eventually("the other leads", async || (apart[1].terms() > terms).then_some(())).await;
        trial.a_while().await;
        let said = apart[0].count(STARTS_OVER);
        apart[0].instance.signal(Signal::SIGCONT);
        eventually("the stale one aborts", async || {
            (apart[0].count(STARTS_OVER) > said).then_some(())
        })
        .await;
        apart.swap(0, 1);
    }
    applied_once(trial).await
}

/// Ends the leader's session: normally at once with `pg_terminate_backend`. At length
/// (`at_length`), the time limits that the session has set itself, or the standby, must end it.
async fn lose(pool: &PgPool, session: i32) {
    if !at_length() {
        let ended: bool = sqlx::query_scalar("SELECT pg_terminate_backend($1)")
            .bind(session)
            .fetch_one(pool)
            .await
            .unwrap();
        assert!(ended);
    }
    eventually("the frozen one's session ends", async || {
        (!leading_sessions(pool).await.contains(&session)).then_some(())
    })
    .await;
}

/// Two reconcilers permanently believe that they lead, and one of them is frozen now and then. Only
/// the cursor keeps them from applying entries twice.
pub async fn two_leaders(seed: u64) -> Outcome {
    let (mut trial, apart) = begin(seed, 2, LOCK_THAT_EVERYBODY_GETS).await;
    eventually("both lead", async || apart.iter().all(|one| one.terms() > 0).then_some(())).await;
    let (mut rounds, mut both) = (0, false);
    while rounds < 3 || !both {
        assert!(rounds < ROUNDS_AT_MOST, "one of them does all the work");
        trial.a_while().await;
        let one = &apart[trial.rng.usize(..2)].instance;
        one.freeze().await;
        trial.a_while().await;
        one.signal(Signal::SIGCONT);
        both = has_applied(&apart[0]).await && has_applied(&apart[1]).await;
        rounds += 1;
    }
    let stale =
        apart.iter().map(|one| one.count("another reconciler has moved the cursor")).sum::<usize>();
    assert!(stale > 0, "they never met");
    applied_once(trial).await
}

async fn has_applied(apart: &Apart) -> bool {
    let (_, metrics) = apart.instance.ops("/metrics").await;
    let entries =
        |line: &str| line.strip_prefix("rushgate_reconciler_entries_total ")?.parse::<f64>().ok();
    metrics.lines().find_map(entries).is_some_and(|entries| entries > 0.0)
}

/// Found before PostgreSQL's own function, because of the search path.
const LOCK_THAT_EVERYBODY_GETS: &str = "
    CREATE FUNCTION public.pg_try_advisory_lock(bigint) RETURNS boolean LANGUAGE sql AS 'SELECT true';
    DO $$ BEGIN
        EXECUTE format('ALTER DATABASE %I SET search_path = public, pg_catalog', current_database());
    END $$;";
