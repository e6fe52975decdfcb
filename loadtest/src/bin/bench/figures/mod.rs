//! Figures that are not rows of requests.

mod drain;
mod holds;
mod latency;
mod million;
mod postgres_baseline;
mod sizing;

use rushgate_loadtest::process::UseOfMachine;
use rushgate_loadtest::{Outcome, say};
use serde::Serialize;

use crate::harness::Harness;
use crate::rows::Row;
use crate::statistics::{median, readable};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Figure {
    Memory,
    LatencyGate,
    LatencyTruth,
    Lag,
    DrainCoupons,
    DrainOrders,
    Rebuild,
    Bytes,
    BigShop,
    PostgresBaseline,
    Sizing,
    HoldsEnd,
    HoldsOthers,
    HoldSeen,
}

impl Figure {
    pub const ALL: [Figure; 14] = [
        Figure::Memory,
        Figure::LatencyGate,
        Figure::LatencyTruth,
        Figure::Lag,
        Figure::DrainCoupons,
        Figure::DrainOrders,
        Figure::Rebuild,
        Figure::Bytes,
        Figure::BigShop,
        Figure::PostgresBaseline,
        Figure::Sizing,
        Figure::HoldsEnd,
        Figure::HoldsOthers,
        Figure::HoldSeen,
    ];

    pub fn named(name: &str) -> Option<Figure> {
        Figure::ALL.into_iter().find(|figure| figure.name() == name)
    }

    pub fn name(self) -> &'static str {
        match self {
            Figure::Memory => "memory",
            Figure::LatencyGate => "p99-gate",
            Figure::LatencyTruth => "p99-truth",
            Figure::Lag => "lag",
            Figure::DrainCoupons => "drain-coupons",
            Figure::DrainOrders => "drain-orders",
            Figure::Rebuild => "rebuild",
            Figure::Bytes => "bytes",
            Figure::BigShop => "big-shop",
            Figure::PostgresBaseline => "postgres",
            Figure::Sizing => "sizing",
            Figure::HoldsEnd => "holds-end",
            Figure::HoldsOthers => "holds-others",
            Figure::HoldSeen => "hold-seen",
        }
    }

    pub fn what(self) -> &'static str {
        match self {
            Figure::Memory => "resident memory of one instance at peak",
            Figure::LatencyGate => "p99 of issue at half its peak rate, ACK=gate",
            Figure::LatencyTruth => "p99 of issue at the same rate, ACK=truth",
            Figure::Lag => "lag (log → PostgreSQL) at half of peak, p99",
            Figure::DrainCoupons => "reconciler draining a backlog, coupons",
            Figure::DrainOrders => "reconciler draining a backlog, orders of 3 lines",
            Figure::Rebuild => {
                "rebuild of 1,000,000 wallets and 1,000,000 coupons, from an empty Redis to ready"
            }
            Figure::Bytes => "Redis bytes per wallet, per held coupon (log trimmed)",
            Figure::BigShop => {
                "issue with 5,000,000 wallets and a template at 1,000,000 issued, against an empty shop"
            }
            Figure::PostgresBaseline => "issue, against PostgreSQL alone (pgbench, 64 clients)",
            Figure::Sizing => {
                "bytes per order with a key in Redis and PostgreSQL; outage that the log bridges"
            }
            Figure::HoldsEnd => {
                "10,000 holds that end in the same second: from its beginning until all are given back"
            }
            Figure::HoldsOthers => "p99 of 200 other requests/s meanwhile",
            Figure::HoldSeen => {
                "from the end of a single hold until its piece is seen in stock, at most"
            }
        }
    }
}

/// The condition that a figure should meet.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    AtLeast(f64),
    AtMost(f64),
    /// A figure for planning, without a target.
    None,
}

impl Target {
    pub fn text(self, unit: &str) -> String {
        let (sign, value) = match self {
            Target::AtLeast(value) => ('≥', value),
            Target::AtMost(value) => ('≤', value),
            Target::None => return "none".into(),
        };
        let value = if value.fract() == 0.0 && value < 1000.0 {
            value.to_string()
        } else {
            readable(value)
        };
        format!("{sign} {value} {unit}").trim().to_owned()
    }
}

/// A measured figure.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    pub name: &'static str,
    pub what: String,
    /// The median of `rounds`.
    pub value: f64,
    pub unit: &'static str,
    pub target: Target,
    /// Additional information for the reader.
    pub note: String,
    pub rounds: Vec<f64>,
    /// As in a row's round, but over the whole measurement.
    pub foreign_cpu: f64,
}

impl Measured {
    pub fn new(figure: Figure, rounds: Vec<f64>, unit: &'static str, target: Target) -> Self {
        let value = median(rounds.clone());
        let (name, what) = (figure.name(), figure.what().to_owned());
        Self { name, what, value, unit, target, note: String::new(), rounds, foreign_cpu: 0.0 }
    }

    pub fn note(self, note: impl Into<String>) -> Self {
        Self { note: note.into(), ..self }
    }

    pub fn met(&self) -> bool {
        match self.target {
            Target::AtLeast(least) => self.value >= least,
            Target::AtMost(most) => self.value <= most,
            Target::None => true,
        }
    }
}

impl std::fmt::Display for Measured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let met = if self.met() { "met" } else { "not met" };
        let (value, target) = (readable(self.value), self.target.text(self.unit));
        write!(
            f,
            "{:<14} {value} {}  ({target}: {met})  {}  {}",
            self.name, self.unit, self.what, self.note
        )
    }
}

/// Measures the figures and adds them to `measured`. One run may yield several. `peak` is the
/// median rate of issuing coupons, if it is known already.
pub async fn measure(
    figures: &[Figure],
    harness: &mut Harness,
    mut peak: Option<f64>,
    measured: &mut Vec<Measured>,
) -> Outcome<()> {
    for run in RUNS.iter().filter(|run| run.iter().any(|figure| figures.contains(figure))) {
        if REFER_TO_PEAK.contains(&run[0]) && peak.is_none() {
            peak = Some(peak_of_issue(harness).await?);
        }
        let begin = UseOfMachine::now();
        let mut found =
            run_of(run[0], harness, peak.unwrap_or_default(), figures.contains(&Figure::BigShop))
                .await?;
        let foreign_cpu = UseOfMachine::now().foreign_since(&begin);
        found.retain(|it| figures.iter().any(|figure| figure.name() == it.name));
        found.iter_mut().for_each(|it| it.foreign_cpu = foreign_cpu);
        measured.extend(found);
    }
    Ok(())
}

/// The runs, each with the figures that it yields.
const RUNS: [&[Figure]; 9] = [
    &[Figure::Memory],
    &[Figure::LatencyGate, Figure::Lag],
    &[Figure::LatencyTruth],
    &[Figure::DrainCoupons],
    &[Figure::DrainOrders],
    &[Figure::PostgresBaseline],
    &[Figure::Sizing],
    &[Figure::HoldsEnd, Figure::HoldsOthers, Figure::HoldSeen],
    &[Figure::Rebuild, Figure::Bytes, Figure::BigShop],
];
/// Runs that need the peak rate of issuing coupons.
const REFER_TO_PEAK: [Figure; 3] =
    [Figure::LatencyGate, Figure::LatencyTruth, Figure::PostgresBaseline];

async fn run_of(
    first: Figure,
    harness: &mut Harness,
    peak: f64,
    big_shop: bool,
) -> Outcome<Vec<Measured>> {
    match first {
        Figure::Memory => Ok(vec![memory(harness).await?]),
        Figure::LatencyGate | Figure::Lag => latency::gate_and_lag(harness, peak / 2.0).await,
        Figure::LatencyTruth => Ok(vec![latency::truth(harness, peak / 2.0).await?]),
        Figure::DrainCoupons => Ok(vec![drain::measure(harness, first, Row::Issue).await?]),
        Figure::DrainOrders => Ok(vec![drain::measure(harness, first, Row::Lines3).await?]),
        Figure::PostgresBaseline => Ok(vec![postgres_baseline::measure(harness, peak).await?]),
        Figure::Sizing => sizing::measure(harness).await,
        Figure::HoldsEnd | Figure::HoldsOthers | Figure::HoldSeen => holds::measure(harness).await,
        Figure::Rebuild | Figure::Bytes | Figure::BigShop => {
            million::measure(harness, big_shop).await
        }
    }
}

/// The median rate of issuing coupons.
async fn peak_of_issue(harness: &mut Harness) -> Outcome<f64> {
    harness.prepare(&[Row::Issue])?;
    let mut rates = vec![];
    for _ in 0..harness.rounds {
        let round = harness.round(Row::Issue).await?;
        say(&round);
        rates.push(round.per_s);
    }
    Ok(median(rates))
}

/// The peak memory after all rows that were measured. If there were none, issues coupons and orders
/// at full speed first.
async fn memory(harness: &mut Harness) -> Outcome<Measured> {
    if !harness.has_driven() {
        for row in [Row::Issue, Row::Order1] {
            harness.prepare(&[row])?;
            say(harness.round(row).await?);
        }
    }
    let mib = harness.peak_memory as f64 / 1024.0 / 1024.0;
    Ok(Measured::new(Figure::Memory, vec![mib], "MiB", Target::AtMost(150.0)))
}
