//! What all rows share: the servers, a shop, an instance and the empty handler; and how one round
//! of a row is measured.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rushgate_loadtest::process::{UseOfMachine, cpu_of, cpu_of_ended_children, peak_memory};
use rushgate_loadtest::shop::{EmptyHandler, Instance, Servers, Shop};
use rushgate_loadtest::{Outcome, say};
use serde::Serialize;

use crate::Options;
use crate::flame::Recording;
use crate::rows::{Contents, Row};
use crate::statistics::FOREIGN_CPU;
use crate::wrk::{Driven, Looking, Plan, Wrk};

/// Time limit until PostgreSQL and RabbitMQ have everything that was decided.
pub const SETTLE_LIMIT: Duration = Duration::from_secs(600);
/// For this long, wrk inspects every answer before a row is measured.
const WARM_UP: Duration = Duration::from_secs(1);
/// Number of requests to prepare for a drive, relative to what the fastest earlier drive would have
/// needed.
const SPARE: f64 = 2.0;
/// Requests per second to prepare as long as there was no earlier drive.
const FIRST_GUESS: f64 = 20_000.0;

pub struct Harness {
    pub servers: Servers,
    pub shop: Shop,
    pub rushgate: PathBuf,
    pub wrk: Wrk,
    pub length: Duration,
    pub rounds: usize,
    /// `None` only while it is being replaced.
    instance: Option<Instance>,
    empty: EmptyHandler,
    pub contents: Contents,
    /// The highest rate of each row so far, per second.
    fastest: BTreeMap<&'static str, f64>,
    /// The highest memory use of an instance so far, in bytes.
    pub peak_memory: u64,
    /// Audit reports of shops that have been closed.
    pub audits: Vec<String>,
}

/// The result of one round of a row.
#[derive(Clone, Debug, Serialize)]
pub struct Round {
    pub row: &'static str,
    /// Expected answers per second.
    pub per_s: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    /// Result of the empty handler with the same requests.
    pub empty_per_s: f64,
    pub empty_p99_ms: f64,
    pub empty_cpu_us: f64,
    pub ratio: f64,
    /// What the ratio would be if nothing else ran on the machine and all followers kept pace: CPU
    /// time per request of the empty handler divided by that of the row, both including wrk's.
    /// Other load on the machine hardly affects it.
    pub cpu_ratio: f64,
    pub cpu_us: CpuPerRequest,
    /// Time from the end of the drive until PostgreSQL and RabbitMQ had everything.
    pub followed_after_s: f64,
    /// Unexpected answers.
    pub wrong: BTreeMap<String, u64>,
    /// CPU time of processes outside the bench, as a share of all CPU time used.
    pub foreign_cpu: f64,
}

/// CPU time per request in µs, measured until PostgreSQL and RabbitMQ have everything.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct CpuPerRequest {
    pub rushgate: f64,
    pub redis: f64,
    pub postgres: f64,
    pub rabbitmq: f64,
    pub wrk: f64,
}

impl CpuPerRequest {
    fn sum(&self) -> f64 {
        self.rushgate + self.redis + self.postgres + self.rabbitmq + self.wrk
    }
}

/// Sums over the drives of the empty handler in one round.
#[derive(Default)]
struct EmptyDrives {
    requests: u64,
    duration_us: u64,
    /// From the slower drive.
    p99_us: f64,
    cpu: Duration,
    wrk_cpu: Duration,
}

impl EmptyDrives {
    fn per_s(&self) -> f64 {
        self.requests as f64 * 1e6 / self.duration_us as f64
    }
}

/// CPU times at one moment.
struct CpuTimes {
    rushgate: Duration,
    redis: Duration,
    postgres: Duration,
    rabbitmq: Duration,
    wrk: Duration,
    use_of_machine: UseOfMachine,
}

impl Harness {
    pub async fn start(options: &Options) -> Outcome<Self> {
        let servers = Servers::start().await?;
        let shop = servers.shop("bench").await?;
        let instance = shop.serve(&options.rushgate, &[])?;
        let (threads, connections) = (options.threads, options.connections);
        Ok(Self {
            wrk: Wrk { folder: shop.redis.folder().to_owned(), threads, connections },
            instance: Some(instance),
            empty: EmptyHandler::start(&options.empty_handler)?,
            servers,
            shop,
            rushgate: options.rushgate.clone(),
            length: Duration::from_secs(options.seconds()),
            rounds: options.rounds(),
            contents: Contents::default(),
            fastest: BTreeMap::new(),
            peak_memory: 0,
            audits: vec![],
        })
    }

    pub fn instance(&self) -> Outcome<&Instance> {
        Ok(self.instance.as_ref().ok_or("no instance runs")?)
    }

    /// Replaces the instance with one that has these settings, on the same shop.
    pub fn exchange(&mut self, settings: &[(&str, &str)]) -> Outcome<&Instance> {
        self.stop_instance()?;
        self.instance = Some(self.shop.serve(&self.rushgate, settings)?);
        self.instance()
    }

    /// The same, after restarting PostgreSQL with this niceness.
    pub async fn exchange_both(&mut self, niceness: u8, settings: &[(&str, &str)]) -> Outcome<()> {
        self.stop_instance()?;
        self.servers.postgres.set_niceness(niceness);
        self.servers.postgres.restart().await?;
        self.instance = Some(self.shop.serve(&self.rushgate, settings)?);
        Ok(())
    }

    fn stop_instance(&mut self) -> Outcome<()> {
        self.note_memory()?;
        if let Some(before) = self.instance.take() {
            before.stop()?;
        }
        Ok(())
    }

    pub fn has_driven(&self) -> bool {
        !self.fastest.is_empty()
    }

    pub fn note_memory(&mut self) -> Outcome<()> {
        self.peak_memory = self.peak_memory.max(peak_memory(self.instance()?.pid())?);
        Ok(())
    }

    /// Fills the shop with what these rows need.
    pub fn prepare_shop(&mut self, rows: &[Row]) -> Outcome<()> {
        for row in rows {
            self.contents.prepare(self.instance.as_ref().ok_or("no instance runs")?, *row)?;
        }
        Ok(())
    }

    /// The same; also sends requests of each row and checks the answers.
    pub fn prepare(&mut self, rows: &[Row]) -> Outcome<()> {
        self.prepare_shop(rows)?;
        for row in rows {
            let plan = self.plan(*row, WARM_UP)?;
            let seen = self.wrk.drive(self.instance()?.api, &plan, WARM_UP, Looking::Into)?;
            if seen.counts.len() != 1 || !seen.counts.contains_key(row.expected()) {
                return Err(format!(
                    "{}: answers were {:?}, not {}",
                    row.name(),
                    seen.counts,
                    row.expected()
                )
                .into());
            }
            self.was_as_fast_as(*row, &seen);
        }
        Ok(())
    }

    fn was_as_fast_as(&mut self, row: Row, driven: &Driven) {
        let before = self.fastest.entry(row.name()).or_default();
        // If the lines were used up, the true rate was higher than measured.
        *before = before.max(driven.per_s()) * if driven.used_up { SPARE } else { 1.0 };
    }

    /// The requests for one drive of a row.
    pub fn plan(&mut self, row: Row, length: Duration) -> Outcome<Plan> {
        let rate = self.fastest.get(row.name()).map_or(FIRST_GUESS, |per_s| per_s * SPARE);
        let count = (rate * length.as_secs_f64()) as u64;
        self.contents.plan(self.instance.as_ref().ok_or("no instance runs")?, row, count)
    }

    /// Drives the empty handler, the row, and the empty handler again, with the same requests, so
    /// that a change in the machine's speed affects both. Repeats everything if too few requests
    /// were prepared.
    pub async fn round(&mut self, row: Row) -> Outcome<Round> {
        loop {
            match self.try_round(row).await? {
                Some(round) => return Ok(round),
                None => {
                    say(format_args!("{}: too few requests were prepared, repeating", row.name()))
                }
            }
        }
    }

    async fn try_round(&mut self, row: Row) -> Outcome<Option<Round>> {
        let plan = self.plan(row, self.length)?;
        self.shop.settle(SETTLE_LIMIT).await?;
        let mut empty = EmptyDrives::default();
        self.drive_empty(&plan, &mut empty)?;

        let (truth, answers) = (self.number(row.truth()).await?, self.instance()?.answers()?);
        let before = self.cpu_times()?;
        let driven = self.wrk.drive(self.instance()?.api, &plan, self.length, Looking::At)?;
        let ended = Instant::now();
        self.shop.settle(SETTLE_LIMIT).await?;
        let followed_after_s = ended.elapsed().as_secs_f64();
        let used = self.cpu_times()?;
        self.was_as_fast_as(row, &driven);
        self.note_memory()?;
        if driven.used_up {
            return Ok(None);
        }
        self.drive_empty(&plan, &mut empty)?;
        if row.truth().contains("events_written") {
            self.shop.empty_queue().await?;
        }

        let wrong = wrong_answers(row, &answers, &self.instance()?.answers()?, &driven)?;
        let good = driven.requests.saturating_sub(wrong.values().sum());
        self.check_truth(row, good, self.number(row.truth()).await? - truth)?;
        let per_s = good as f64 * 1e6 / driven.duration_us as f64;
        let cpu_us = used.since(&before, driven.requests);
        Ok(Some(Round {
            row: row.name(),
            per_s,
            p50_ms: driven.p50_us / 1e3,
            p99_ms: driven.p99_us / 1e3,
            empty_per_s: empty.per_s(),
            empty_p99_ms: empty.p99_us / 1e3,
            empty_cpu_us: per_request(empty.cpu, empty.requests),
            ratio: per_s / empty.per_s(),
            cpu_ratio: per_request(empty.cpu + empty.wrk_cpu, empty.requests) / cpu_us.sum(),
            cpu_us,
            followed_after_s,
            wrong,
            foreign_cpu: used.use_of_machine.foreign_since(&before.use_of_machine),
        }))
    }

    /// Drives the empty handler for half as long as a row, rounded up, because wrk takes whole
    /// seconds.
    fn drive_empty(&self, plan: &Plan, so_far: &mut EmptyDrives) -> Outcome<()> {
        let half = Duration::from_secs(self.length.as_secs().div_ceil(2));
        let (cpu, wrk_cpu) = (cpu_of(self.empty.pid()), cpu_of_ended_children());
        let driven = self.wrk.drive(self.empty.address, plan, half, Looking::Away)?;
        so_far.requests += driven.requests;
        so_far.duration_us += driven.duration_us;
        so_far.p99_us = so_far.p99_us.max(driven.p99_us);
        so_far.cpu += cpu_of(self.empty.pid()) - cpu;
        so_far.wrk_cpu += cpu_of_ended_children() - wrk_cpu;
        Ok(())
    }

    /// One additional drive of a row under perf.
    pub async fn flame(&mut self, row: Row, svg: &Path) -> Outcome<()> {
        let plan = self.plan(row, self.length)?;
        self.shop.settle(SETTLE_LIMIT).await?;
        let pids =
            [Some(self.instance()?.pid()), self.shop.redis.pid(), self.servers.postgres.pid()];
        let recording =
            Recording::start(&self.wrk.folder, pids.into_iter().flatten(), self.length)?;
        self.wrk.drive(self.instance()?.api, &plan, self.length, Looking::At)?;
        recording.draw(row.what(), svg)?;
        say(format_args!("flame graph of {}: {}", row.name(), svg.display()));
        self.shop.settle(SETTLE_LIMIT).await
    }

    /// PostgreSQL must have everything that wrk counted as a success, and at most the requests in
    /// flight in addition. Refusals and reads must not have changed anything.
    fn check_truth(&self, row: Row, good: u64, grown: i64) -> Outcome<()> {
        let grown = u64::try_from(grown)?;
        let (least, most) = match row.changes_something() {
            true => (good, good + self.wrk.connections as u64),
            false => (0, 0),
        };
        if (least..=most).contains(&grown) {
            return Ok(());
        }
        Err(format!("{}: PostgreSQL gained {grown}, but wrk counted {good}", row.name()).into())
    }

    pub async fn number(&self, sql: &'static str) -> Outcome<i64> {
        let number: Option<i64> = sqlx::query_scalar(sql).fetch_one(&self.shop.pool).await?;
        Ok(number.unwrap_or(0))
    }

    fn cpu_times(&self) -> Outcome<CpuTimes> {
        let of = |pid: Option<u32>| pid.map(cpu_of).unwrap_or_default();
        Ok(CpuTimes {
            rushgate: cpu_of(self.instance()?.pid()),
            redis: of(self.shop.redis.pid()),
            postgres: of(self.servers.postgres.pid()),
            rabbitmq: of(self.servers.rabbitmq.pid()),
            wrk: cpu_of_ended_children(),
            use_of_machine: UseOfMachine::now(),
        })
    }

    /// Audits the shop and stops everything. Returns the reports of all audits.
    pub async fn finish(mut self) -> Outcome<Vec<String>> {
        self.shop.settle(SETTLE_LIMIT).await?;
        let begin = Instant::now();
        self.audits.push(self.shop.audit(&self.rushgate)?);
        say(format_args!("  clean, after {:.1} s", begin.elapsed().as_secs_f64()));
        if let Some(instance) = self.instance.take() {
            instance.stop()?;
        }
        self.shop.pool.close().await;
        self.shop.redis.stop().await;
        self.servers.stop().await;
        Ok(self.audits)
    }
}

impl CpuTimes {
    fn since(&self, before: &CpuTimes, requests: u64) -> CpuPerRequest {
        CpuPerRequest {
            rushgate: per_request(self.rushgate - before.rushgate, requests),
            redis: per_request(self.redis - before.redis, requests),
            postgres: per_request(self.postgres - before.postgres, requests),
            rabbitmq: per_request(self.rabbitmq - before.rabbitmq, requests),
            wrk: per_request(self.wrk - before.wrk, requests),
        }
    }
}

fn per_request(cpu: Duration, requests: u64) -> f64 {
    cpu.as_secs_f64() * 1e6 / requests.max(1) as f64
}

impl Driven {
    pub fn per_s(&self) -> f64 {
        self.requests as f64 * 1e6 / self.duration_us as f64
    }
}

/// Unexpected answers, as counted by the instance. wrk's own counts must agree.
fn wrong_answers(
    row: Row,
    before: &BTreeMap<String, u64>,
    after: &BTreeMap<String, u64>,
    driven: &Driven,
) -> Outcome<BTreeMap<String, u64>> {
    let mut wrong = BTreeMap::new();
    for (answer, count) in after {
        let grown = count - before.get(answer).unwrap_or(&0);
        if grown > 0 && *answer != row.expected_metric() {
            wrong.insert(answer.clone(), grown);
        }
    }
    if driven.broken > 0 {
        wrong.insert("no answer".into(), driven.broken);
    }
    let refused = if row.expected().starts_with('4') {
        driven.requests - driven.refused
    } else {
        driven.refused
    };
    if refused > wrong.values().sum() {
        return Err(format!(
            "{}: wrk counted {refused} wrong answers, but the instance {wrong:?}",
            row.name()
        )
        .into());
    }
    Ok(wrong)
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Round {
            row, per_s, p50_ms, p99_ms, ratio, cpu_ratio, empty_per_s, cpu_us: cpu, ..
        } = self;
        write!(
            f,
            "{row:<14} {per_s:>8.0}/s  ratio {ratio:.3} (by CPU {cpu_ratio:.3}) of {empty_per_s:.0}/s  p50 {p50_ms:.1} ms  p99 {p99_ms:.1} ms  \
             CPU µs: rushgate {:.1} redis {:.1} postgres {:.1} rabbitmq {:.1} wrk {:.1} (empty {:.1})  followed after {:.1} s",
            cpu.rushgate,
            cpu.redis,
            cpu.postgres,
            cpu.rabbitmq,
            cpu.wrk,
            self.empty_cpu_us,
            self.followed_after_s
        )?;
        if self.foreign_cpu > FOREIGN_CPU {
            write!(
                f,
                "  {:.0}% of the CPU time was used by other processes",
                self.foreign_cpu * 100.0
            )?;
        }
        if self.wrong.is_empty() { Ok(()) } else { write!(f, "  WRONG: {:?}", self.wrong) }
    }
}
