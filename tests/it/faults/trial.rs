//! One trial: servers, instances, clients, and in the end the checker.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use rushgate::gate::cell::Meta;
use rushgate::log::RawEntry;
use uuid::Uuid;

use crate::cluster::{Cluster, Instance, Private, Settings, eventually};
use crate::history::checker::{Expect, Report, SOLD_OUT_MEMORY_US, check};
use crate::history::client::{Fleet, Load, Mix};
use crate::history::collect;

/// The longest that clients may wait for their next successes when all should be well.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// RUSHGATE_TEST_SEED, or always the same: what CI runs is what ran before.
pub fn seed() -> u64 {
    std::env::var("RUSHGATE_TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// RUSHGATE_CHAOS_AT_LENGTH: faults last as long as the promise speaks of, not only as long as they must.
pub fn at_length() -> bool {
    std::env::var_os("RUSHGATE_CHAOS_AT_LENGTH").is_some()
}

/// What a trial begins with.
pub struct Setup {
    pub private: Private,
    pub instances: usize,
    /// Changes to the instances' settings.
    pub settings: Vec<(&'static str, String)>,
    pub mix: Mix,
}

impl Default for Setup {
    fn default() -> Self {
        Self { private: Private::default(), instances: 2, settings: vec![], mix: Mix::default() }
    }
}

pub struct Trial {
    pub cluster: Cluster,
    pub fleet: Arc<Fleet>,
    pub load: Load,
    /// Decides when the fault falls, and whom it hits.
    pub rng: Rng,
    /// What the fault makes permissible.
    pub expect: Expect,
    /// Entries that only a Redis held which is no more.
    pub elsewhere: Vec<RawEntry>,
    /// Instances that live and that clients no longer know.
    pub retired: Vec<Arc<Instance>>,
    /// How long the fault kept the shop from serving, where that is measured.
    pub recovery: Option<Duration>,
    pub settings: Settings,
}

/// What clients were told and is gone stands in a list; and what stands there is gone, whether or not a client was told.
async fn assert_listed(instances: &[Arc<Instance>], report: &Report) {
    let listed =
        || -> HashSet<String> { instances.iter().flat_map(|instance| instance.listed_as_gone()).collect() };
    // What staff changed has no id.
    let gone: Vec<&String> = report.gone.iter().filter(|id| Uuid::parse_str(id).is_ok()).collect();
    let missing = || {
        let listed = listed();
        gone.iter().filter(|id| !listed.contains(**id)).collect::<Vec<_>>()
    };
    let deadline = Instant::now() + PATIENCE;
    while !missing().is_empty() {
        assert!(Instant::now() < deadline, "gone, and in no list: {:?}", missing());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let wrong: Vec<String> = listed().into_iter().filter(|id| !report.aside_ids.contains(id)).collect();
    assert!(wrong.is_empty(), "listed, and not gone: {wrong:?}");
}

fn with_all(settings: &Settings, changes: Vec<(&'static str, String)>) -> Settings {
    let settings = settings.with("RUSHGATE_REQUEST_TIMEOUT_MS", "3000");
    changes.into_iter().fold(settings, |settings, (name, value)| settings.with(name, value))
}

/// What a trial showed.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Requests of clients.
    pub operations: usize,
    /// … that got no clear answer.
    pub unknown: usize,
    /// Decisions in the log.
    pub facts: usize,
    /// Answers that were held against the log.
    pub checked: usize,
    pub epochs: usize,
    /// Acknowledged and gone; 0 unless Redis lost its disk.
    pub gone: usize,
    pub recovery: Option<Duration>,
}

impl Trial {
    /// A shop on servers of its own, whose clients are under way.
    pub async fn begin(seed: u64, setup: Setup) -> Self {
        let (cluster, settings) = Self::servers(setup.private, setup.settings).await;
        let fleet = Fleet::start(&vec![&settings; setup.instances]).await;
        Self::on(seed, cluster, settings, fleet, setup.mix).await
    }

    /// Servers that keep what a history needs, and the settings of instances on them.
    pub async fn servers(mut private: Private, changes: Vec<(&'static str, String)>) -> (Cluster, Settings) {
        private.redis_config.extend(collect::redis_config());
        let cluster = Cluster::with(private).await;
        let settings = with_all(&cluster.settings, changes);
        (cluster, settings)
    }

    /// The same with instances that only serve the API, and another one that does all the rest; so that the one can be
    /// stopped without the other.
    pub async fn apart(seed: u64, setup: Setup) -> (Self, Instance) {
        let (cluster, settings) = Self::servers(setup.private, setup.settings).await;
        let follower = cluster.start_roles("reconciler,relay,scheduler").await;
        let settings = settings.with("RUSHGATE_ROLES", "api");
        let fleet = Fleet::start(&vec![&settings; setup.instances]).await;
        (Self::on(seed, cluster, settings, fleet, setup.mix).await, follower)
    }

    /// The same on what is there already; the shop is open and empty.
    pub async fn on(seed: u64, cluster: Cluster, settings: Settings, fleet: Arc<Fleet>, mix: Mix) -> Self {
        println!("seed {seed}");
        collect::watch_cursor(&cluster.pool).await;
        let load = Load::start(&fleet, seed, mix).await;
        Self {
            cluster,
            fleet,
            load,
            rng: Rng::with_seed(seed),
            expect: Expect::default(),
            elsewhere: vec![],
            retired: vec![],
            recovery: None,
            settings,
        }
    }

    /// Lets the clients go on until a random moment.
    pub async fn a_while(&mut self) {
        let more = self.rng.usize(20..120);
        self.load.until_more(more, PATIENCE).await;
        tokio::time::sleep(Duration::from_micros(self.rng.u64(..5_000))).await;
    }

    /// One of the instances, by its number.
    pub fn somebody(&mut self) -> usize {
        self.rng.usize(..self.fleet.all().len())
    }

    /// Another instance in the place of this one, ready.
    pub async fn start_again(&self, number: usize) {
        self.fleet.replace(number, Instance::ready(&self.settings).await);
    }

    /// From now on the shop must serve: waits for `more` successes of every client's mix, and notes how long it took.
    pub async fn serves_within(&mut self, limit: Duration) {
        let since = Instant::now();
        self.load.until_more(3, limit).await;
        let took = since.elapsed();
        self.recovery = Some(self.recovery.map_or(took, |before| before.max(took)));
    }

    /// The epoch that the cell is in, once it is open.
    pub async fn open_epoch(&self) -> u64 {
        let meta = eventually("the cell is open", || async {
            let meta = self.cluster.meta().await;
            (meta.state == "open").then_some(meta)
        })
        .await;
        meta.epoch
    }

    /// Waits until PostgreSQL has all that was decided up to now, and returns when that was: what is lost from here on
    /// was decided later.
    pub async fn settled(&self) -> u64 {
        let now_us = self.load.now_us();
        let Meta { epoch, seq, .. } = self.cluster.meta().await;
        eventually("PostgreSQL has what was decided", || async {
            let meta = self.cluster.meta().await;
            (meta.epoch > epoch || meta.applied >= seq).then_some(())
        })
        .await;
        now_us
    }

    /// Waits until the gate was built anew after this epoch; returns the epoch that is open now.
    pub async fn rebuilt_after(&self, epoch: u64) -> u64 {
        eventually("the gate is built anew", || async {
            let meta = self.cluster.meta().await;
            (meta.state == "open" && meta.epoch > epoch).then_some(meta.epoch)
        })
        .await
    }

    /// What clients saw since then may be gone: Redis lost what it had acknowledged.
    pub fn forgive_since(&mut self, since_us: u64) {
        self.expect.may_lose = true;
        self.forgive_reads_since(since_us);
    }

    /// What clients read since then may be gone, but nothing that was acknowledged.
    pub fn forgive_reads_since(&mut self, since_us: u64) {
        // An instance may refuse from memory for a moment longer.
        self.expect.forgiven_us.push((since_us, self.load.now_us() + SOLD_OUT_MEMORY_US));
    }

    /// A while more, then everything is held against the model; panics when a promise is broken.
    pub async fn finish(self) -> (Outcome, Report) {
        let (outcome, report, _servers) = self.conclude().await;
        (outcome, report)
    }

    /// The same where acknowledged decisions were lost: those who made them have listed what is gone, and nothing else.
    pub async fn finish_with_losses(self) -> Outcome {
        let instances: Vec<Arc<Instance>> =
            self.fleet.all().into_iter().chain(self.retired.clone()).collect();
        let (outcome, report, _servers) = self.conclude().await;
        assert_listed(&instances, &report).await;
        outcome
    }

    async fn conclude(mut self) -> (Outcome, Report, Cluster) {
        self.a_while().await;
        let operations = self.load.stop().await;
        let history = collect::collect(&self.cluster, operations, self.elsewhere).await;
        let report = check(&history, &self.expect);
        report.assert_clean();
        let outcome = Outcome {
            operations: history.operations.len(),
            unknown: history.operations.iter().filter(|op| op.unknown()).count(),
            facts: report.facts,
            checked: report.checked,
            epochs: report.epochs,
            gone: report.gone.len(),
            recovery: self.recovery,
        };
        (outcome, report, self.cluster)
    }
}
