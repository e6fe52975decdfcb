//! Figures that are no rows of requests.

mod drain;
mod latency;
mod million;
mod rival;

use rushgate_loadtest::{Outcome, say};
use serde::Serialize;

use crate::report::{Report, median, sensible};
use crate::rows::Row;
use crate::stage::Stage;

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
    Rival,
}

impl Figure {
    pub const ALL: [Figure; 10] = [
        Figure::Memory,
        Figure::LatencyGate,
        Figure::LatencyTruth,
        Figure::Lag,
        Figure::DrainCoupons,
        Figure::DrainOrders,
        Figure::Rebuild,
        Figure::Bytes,
        Figure::BigShop,
        Figure::Rival,
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
            Figure::Rival => "postgres",
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
            Figure::Rival => "issue, against PostgreSQL alone (pgbench, 64 clients)",
        }
    }
}

/// What must hold for a target to be met.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    AtLeast(f64),
    AtMost(f64),
}

impl Target {
    pub fn text(self, unit: &str) -> String {
        let (sign, value) = match self {
            Target::AtLeast(value) => ('≥', value),
            Target::AtMost(value) => ('≤', value),
        };
        let value = if value.fract() == 0.0 && value < 1000.0 { value.to_string() } else { sensible(value) };
        format!("{sign} {value} {unit}").trim().to_owned()
    }
}

/// One figure.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    pub name: &'static str,
    pub what: String,
    /// The median of `rounds`.
    pub value: f64,
    pub unit: &'static str,
    pub target: Target,
    /// What a reader may want to know besides.
    pub note: String,
    pub rounds: Vec<f64>,
}

impl Measured {
    pub fn new(figure: Figure, rounds: Vec<f64>, unit: &'static str, target: Target) -> Self {
        let value = median(rounds.clone());
        let (name, what) = (figure.name(), figure.what().to_owned());
        Self { name, what, value, unit, target, note: String::new(), rounds }
    }

    pub fn note(self, note: impl Into<String>) -> Self {
        Self { note: note.into(), ..self }
    }

    pub fn met(&self) -> bool {
        match self.target {
            Target::AtLeast(least) => self.value >= least,
            Target::AtMost(most) => self.value <= most,
        }
    }
}

impl std::fmt::Display for Measured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let met = if self.met() { "met" } else { "not met" };
        let (value, target) = (sensible(self.value), self.target.text(self.unit));
        write!(f, "{:<14} {value} {}  ({target}: {met})  {}  {}", self.name, self.unit, self.what, self.note)
    }
}

/// Measures figures, and adds them to the report; one run may give several.
pub async fn measure(figures: &[Figure], stage: &mut Stage, report: &mut Report) -> Outcome<()> {
    let wanted = |some: &[Figure]| some.iter().any(|figure| figures.contains(figure));
    let mut found = vec![];
    if wanted(&[Figure::Memory]) {
        found.push(memory(stage).await?);
    }
    if wanted(&[Figure::LatencyGate, Figure::Lag, Figure::LatencyTruth, Figure::Rival]) {
        let peak = match report.medians(Row::Issue) {
            Some(medians) => medians.per_s,
            None => peak_of_issue(stage).await?,
        };
        if wanted(&[Figure::LatencyGate, Figure::Lag]) {
            found.extend(latency::gate_and_lag(stage, peak / 2.0).await?);
        }
        if wanted(&[Figure::LatencyTruth]) {
            found.push(latency::truth(stage, peak / 2.0).await?);
        }
        if wanted(&[Figure::Rival]) {
            found.push(rival::measure(stage, peak).await?);
        }
    }
    for (figure, row) in [(Figure::DrainCoupons, Row::Issue), (Figure::DrainOrders, Row::Lines3)] {
        if wanted(&[figure]) {
            found.push(drain::measure(stage, figure, row).await?);
        }
    }
    if wanted(&[Figure::Rebuild, Figure::Bytes, Figure::BigShop]) {
        found.extend(million::measure(stage, wanted(&[Figure::BigShop])).await?);
    }
    found.retain(|it| figures.iter().any(|figure| figure.name() == it.name));
    report.figures.extend(found);
    Ok(())
}

/// The median rate of issuing coupons.
async fn peak_of_issue(stage: &mut Stage) -> Outcome<f64> {
    stage.prepare(&[Row::Issue])?;
    let mut rates = vec![];
    for _ in 0..stage.rounds {
        let round = stage.round(Row::Issue).await?;
        say(&round);
        rates.push(round.per_s);
    }
    Ok(median(rates))
}

/// After all rows that were measured; with none, after issuing and ordering at full speed.
async fn memory(stage: &mut Stage) -> Outcome<Measured> {
    if !stage.has_driven() {
        for row in [Row::Issue, Row::Order1] {
            stage.prepare(&[row])?;
            say(stage.round(row).await?);
        }
    }
    let mib = stage.peak_memory as f64 / 1024.0 / 1024.0;
    Ok(Measured::new(Figure::Memory, vec![mib], "MiB", Target::AtMost(150.0)))
}
