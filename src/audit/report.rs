//! What the audit found, for people and for programs.

use serde::Serialize;
use std::fmt;

/// Differences that one check names; the rest are counted.
pub const NAMED_PER_CHECK: usize = 20;

/// The exit code of an audit that could not compare.
pub const NOT_COMPARED: u8 = 2;

/// All that was found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub outcome: Outcome,
    /// Nothing differs, and everything was compared.
    pub clean: bool,
    pub cell: u32,
    /// Where PostgreSQL stood when it was looked at.
    pub epoch: i64,
    pub seq: i64,
    /// Whether gate and truth were compared at one moment; else the check `cell` says why not.
    pub gate_compared: bool,
    pub checks: Vec<Check>,
}

/// What an audit came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Clean,
    /// Something is not as it must be.
    Differences,
    /// Gate and truth did not stand still at one place; nothing else was found. [`Report::checks`]' `cell` says why.
    NotCompared,
}

/// One rule, and where it does not hold.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    pub name: &'static str,
    pub rule: &'static str,
    /// How many things were looked at.
    pub looked_at: i64,
    /// The first differences, by id.
    pub differences: Vec<Difference>,
    /// How many differences there are beyond those named.
    pub more: i64,
}

/// One thing that is not as it must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    pub id: String,
    /// What the truth (or the rule) says.
    pub expected: String,
    /// What the gate (or the table) has.
    pub found: String,
}

impl Report {
    /// The check of this name.
    pub fn check(&self, name: &str) -> Option<&Check> {
        self.checks.iter().find(|check| check.name == name)
    }

    /// The exit code of `rushgate audit`, which is [`NOT_COMPARED`] as well when a server could not be asked.
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

    /// Notes a difference, or counts it when enough are named.
    pub fn differs(&mut self, id: impl Into<String>, expected: impl Into<String>, found: impl Into<String>) {
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
            writeln!(f, "{:<18} {:>10}  {:<14} {}", check.name, check.looked_at, outcome, check.rule)?;
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
