//! Counts every answer of the run by request and outcome, for the report.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// The outcome of a request.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// 2xx.
    Success,
    /// A refusal that the scenario expects, for example `sold-out`. It is not an error.
    Refusal(String),
    /// Any other answer, or none.
    Failure(String),
}

/// Number of answers in one second of the run, by outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Second {
    pub successes: u64,
    pub refusals: u64,
    pub failures: u64,
}

impl Second {
    pub fn total(&self) -> u64 {
        self.successes + self.refusals + self.failures
    }
}

#[derive(Debug)]
pub struct AnswerCounts {
    began: Instant,
    /// Response times in milliseconds, by request name and outcome.
    took_ms: BTreeMap<(String, Outcome), Vec<f32>>,
    seconds: Vec<Second>,
}

/// A row of the report's table.
#[derive(Debug, PartialEq)]
pub struct Row {
    pub name: String,
    pub outcome: Outcome,
    pub count: usize,
    pub p50_ms: f32,
    pub p99_ms: f32,
    pub max_ms: f32,
}

impl AnswerCounts {
    pub fn new(began: Instant) -> Self {
        Self { began, took_ms: BTreeMap::new(), seconds: vec![] }
    }

    /// Counts an answer that arrived at `at`.
    pub fn add(&mut self, name: &str, outcome: Outcome, took: Duration, at: Instant) {
        let second = at.saturating_duration_since(self.began).as_secs() as usize;
        if self.seconds.len() <= second {
            self.seconds.resize(second + 1, Second::default());
        }
        if let Some(counted) = self.seconds.get_mut(second) {
            match outcome {
                Outcome::Success => counted.successes += 1,
                Outcome::Refusal(_) => counted.refusals += 1,
                Outcome::Failure(_) => counted.failures += 1,
            }
        }
        self.took_ms
            .entry((name.to_owned(), outcome))
            .or_default()
            .push(took.as_secs_f32() * 1_000.0);
    }

    /// Sorted by request; successes before refusals before failures.
    pub fn rows(&self) -> Vec<Row> {
        let row = |((name, outcome), took): (&(String, Outcome), &Vec<f32>)| {
            let mut sorted = took.clone();
            sorted.sort_by(f32::total_cmp);
            Row {
                name: name.clone(),
                outcome: outcome.clone(),
                count: sorted.len(),
                p50_ms: percentile(&sorted, 0.50),
                p99_ms: percentile(&sorted, 0.99),
                max_ms: sorted.last().copied().unwrap_or_default(),
            }
        };
        self.took_ms.iter().map(row).collect()
    }

    pub fn seconds(&self) -> &[Second] {
        &self.seconds
    }
}

/// Nearest-rank percentile of sorted values; 0 if there are none.
fn percentile(sorted: &[f32], share: f64) -> f32 {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_counted_by_request_outcome_and_second() {
        let began = Instant::now();
        let mut answers = AnswerCounts::new(began);
        for ms in 1..=100_u64 {
            answers.add(
                "buy",
                Outcome::Success,
                Duration::from_millis(ms),
                began + Duration::from_millis(ms),
            );
        }
        let sold_out = Outcome::Refusal("sold-out".into());
        answers.add(
            "buy",
            sold_out.clone(),
            Duration::from_millis(7),
            began + Duration::from_secs(2),
        );
        let rows = answers.rows();
        assert_eq!(rows.len(), 2);
        assert_eq!(
            (rows[0].count, rows[0].p50_ms, rows[0].p99_ms, rows[0].max_ms),
            (100, 50.0, 99.0, 100.0)
        );
        assert_eq!((&rows[1].outcome, rows[1].count), (&sold_out, 1));
        let counted: Vec<u64> = answers.seconds().iter().map(Second::total).collect();
        assert_eq!(counted, [100, 0, 1]);
    }
}
