//! The audit's report, as text and as JSON.

use serde::Serialize;
use std::fmt;

/// The most differences that one check lists; the rest are only counted.
pub const NAMED_PER_CHECK: usize = 20;

/// The exit code of an audit that could not compare.
pub const NOT_COMPARED: u8 = 2;

/// The result of an audit.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub outcome: Outcome,
    /// Everything was compared, and nothing differs.
    pub clean: bool,
    pub cell: u32,
    /// PostgreSQL's cursor in the snapshot: `epoch` and `seq`.
    pub epoch: i64,
    pub seq: i64,
    /// Whether gate and truth were compared at the same position. If not, the check `cell` says
    /// why.
    pub gate_compared: bool,
    pub checks: Vec<Check>,
}

/// The outcome of an audit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Clean,
    /// At least one check does not hold.
    Differences,
    /// Gate and truth could not be compared at one position, and the other checks found no
    /// difference. The check `cell` says why.
    NotCompared,
}

/// One rule, and the differences where it does not hold.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    pub name: &'static str,
    pub rule: &'static str,
    /// The number of items checked.
    pub looked_at: i64,
    /// The first differences, at most `NAMED_PER_CHECK`.
    pub differences: Vec<Difference>,
    /// The number of further differences.
    pub more: i64,
}

/// One item that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    pub id: String,
    /// The value that the truth (or the rule) requires.
    pub expected: String,
    /// The value in the gate (or the table).
    pub found: String,
}

impl Report {
    /// The check with this name.
    pub fn check(&self, name: &str) -> Option<&Check> {
        self.checks.iter().find(|check| check.name == name)
    }

    /// The exit code of `rushgate audit`. If a server cannot be read, there is no report, and the
    /// exit code is [`NOT_COMPARED`], too.
    pub fn exit_code(&self) -> u8 {
        match self.outcome {
            Outcome::Clean => 0,
            Outcome::Differences => 1,
            Outcome::NotCompared => NOT_COMPARED,
        }
    }
}

impl Check {
    pub fn new(name: &'static str, rule: &'static str) -> Self {
        Self { name, rule, looked_at: 0, differences: Vec::new(), more: 0 }
    }

    pub fn holds(&self) -> bool {
        self.differences.is_empty()
    }

    /// Lists a difference, or only counts it if the list is full.
    pub fn differs(
        &mut self,
        id: impl Into<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) {
        if self.differences.len() < NAMED_PER_CHECK {
            let (id, expected, found) = (id.into(), expected.into(), found.into());
            self.differences.push(Difference { id, expected, found });
        } else {
            self.more += 1;
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for check in &self.checks {
            let outcome = match check.differences.len() as i64 + check.more {
                0 => String::from("ok"),
                n => format!("{n} DIFFERENT"),
            };
            writeln!(
                f,
                "{:<18} {:>10}  {:<14} {}",
                check.name, check.looked_at, outcome, check.rule
            )?;
            for Difference { id, expected, found } in &check.differences {
                writeln!(f, "    {id}: expected {expected}, found {found}")?;
            }
            if check.more > 0 {
                writeln!(f, "    … and {} more", check.more)?;
            }
        }
        let outcome = match self.outcome {
            Outcome::Clean => "clean",
            Outcome::Differences => "NOT clean",
            Outcome::NotCompared => "NOT compared",
        };
        write!(f, "audit of cell {} at {}-{}: {outcome}", self.cell, self.epoch, self.seq)
    }
}
