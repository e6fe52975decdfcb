//! Runs wrk, and tells it what to send (see `wrk/requests.lua`).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use rushgate_loadtest::Outcome;
use serde::Deserialize;

const SCRIPT: &str = include_str!("../../../wrk/requests.lua");
/// wrk gives up a request after this time.
const ANSWER_LIMIT_S: u64 = 10;

/// Ten-digit numbers in a scattered order that repeats only after ten billion.
pub const MODULUS: u64 = 10_000_000_000;
const STRIDE: u64 = 6_180_339_887;

/// The `n`th of these numbers.
pub fn scattered(n: u64) -> u64 {
    (u128::from(n) * u128::from(STRIDE) % u128::from(MODULUS)) as u64
}

/// The texts that are inserted into the gaps of a request.
#[derive(Clone, Debug)]
pub enum Gaps {
    /// The request has no gaps.
    Same,
    /// [`scattered`] numbers from this one on, never the same twice.
    New { from: u64 },
    /// Numbers below `pool`, repeatedly, in a scattered order.
    Pool { pool: u64 },
    /// Lines; the first gap takes the first `first` bytes of a line.
    Lines { lines: Vec<String>, first: usize },
}

/// The requests of one drive.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The request, split at its gaps.
    pub parts: Vec<String>,
    pub gaps: Gaps,
}

/// How wrk is run.
#[derive(Clone, Debug)]
pub struct Wrk {
    pub folder: PathBuf,
    pub threads: usize,
    pub connections: usize,
}

/// How closely wrk inspects the answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Looking {
    /// Reads every answer and counts answers by status and code. This takes CPU time from what is
    /// measured.
    Into,
    /// Counts refusals only.
    At,
    /// For the empty handler: requests that can be sent only once may be repeated.
    Away,
}

/// The result of a drive.
#[derive(Clone, Debug, Deserialize)]
pub struct Driven {
    pub duration_us: u64,
    pub requests: u64,
    /// Answers with status 400 or above.
    pub refused: u64,
    /// Connections that failed, and requests without an answer.
    pub broken: u64,
    pub p50_us: f64,
    pub p99_us: f64,
    /// The lines were used up, so the measurement is invalid.
    pub used_up: bool,
    /// Answers by status and code, if they were counted.
    pub counts: BTreeMap<String, u64>,
}

impl Wrk {
    /// Sends the plan's requests for `length`.
    pub fn drive(
        &self,
        address: SocketAddr,
        plan: &Plan,
        length: Duration,
        looking: Looking,
    ) -> Outcome<Driven> {
        let (script, plan_file) = (self.folder.join("requests.lua"), self.folder.join("plan.lua"));
        std::fs::write(&script, SCRIPT)?;
        std::fs::write(
            &plan_file,
            self.lua(plan, looking == Looking::Into, looking == Looking::Away)?,
        )?;
        let output = Command::new("wrk")
            .args(["-t", &self.threads.to_string(), "-c", &self.connections.to_string()])
            .args([
                "-d",
                &format!("{}s", length.as_secs()),
                "--timeout",
                &format!("{ANSWER_LIMIT_S}s"),
            ])
            .arg("-s")
            .arg(&script)
            .arg(format!("http://{address}/"))
            .arg("--")
            .arg(&plan_file)
            .stdin(Stdio::null())
            .output()
            .map_err(|e| format!("wrk cannot be run ({e}): `./dev install` installs it"))?;
        let text = String::from_utf8_lossy(&output.stdout);
        match text.lines().find_map(|line| line.strip_prefix("RESULT ")) {
            Some(result) => Ok(serde_json::from_str(result)?),
            None => Err(format!("wrk: {text}{}", String::from_utf8_lossy(&output.stderr)).into()),
        }
    }

    /// The plan as a Lua table. Each thread has its own numbers or lines.
    fn lua(&self, plan: &Plan, count: bool, again: bool) -> Outcome<String> {
        let mut lua = format!("return {{ count = {count},\n  parts = {{");
        for part in &plan.parts {
            write!(lua, "{}, ", quoted(part))?;
        }
        lua += "},\n";
        let threads = self.threads as u64;
        match &plan.gaps {
            Gaps::Same => {}
            Gaps::New { from } => {
                let starts: Vec<u64> =
                    (0..threads).map(|thread| scattered(from + thread)).collect();
                let step = scattered(threads);
                writeln!(
                    lua,
                    "  numbers = {{{}}}, step = {step}, modulus = {MODULUS},",
                    listed(&starts)
                )?;
            }
            Gaps::Pool { pool } => {
                let starts: Vec<u64> = (0..threads).map(|thread| thread * pool / threads).collect();
                let step = jump(*pool);
                writeln!(
                    lua,
                    "  numbers = {{{}}}, step = {step}, modulus = {pool},",
                    listed(&starts)
                )?;
            }
            Gaps::Lines { lines, first } => {
                let mut files = vec![];
                for thread in 0..self.threads {
                    let file = self.folder.join(format!("lines-{thread}"));
                    let own: Vec<&str> = lines
                        .iter()
                        .skip(thread)
                        .step_by(self.threads)
                        .map(String::as_str)
                        .collect();
                    std::fs::write(&file, own.join("\n") + "\n")?;
                    files.push(quoted(&file.display().to_string()));
                }
                writeln!(
                    lua,
                    "  files = {{{}}}, first = {first}, again = {again},",
                    files.join(", ")
                )?;
            }
        }
        Ok(lua + "}\n")
    }
}

fn listed(numbers: &[u64]) -> String {
    numbers.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")
}

/// A step that visits every element of a pool: it is coprime to the pool's size.
fn jump(pool: u64) -> u64 {
    let common = |mut a: u64, mut b: u64| {
        while b > 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    (pool * 618 / 1_000..pool).find(|step| common(*step, pool) == 1).unwrap_or(1)
}

/// Quotes a string for Lua.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\r' => quoted += "\\r",
            '\n' => quoted += "\\n",
            other => quoted.push(other),
        }
    }
    quoted + "\""
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn new_numbers_never_repeat_and_a_pool_is_visited_whole() {
        let numbers: HashSet<u64> = (0..1_000_000).map(scattered).collect();
        assert_eq!(numbers.len(), 1_000_000);
        for pool in [1, 2, 10, 1_000, 100_000] {
            let step = jump(pool);
            let visited: HashSet<u64> = (0..pool).map(|n| n * step % pool).collect();
            assert_eq!(visited.len() as u64, pool);
        }
    }

    #[test]
    fn a_thread_goes_on_where_its_own_numbers_are() {
        // Thread 1 of 2 uses the numbers 1, 3, 5 …, and gets each by adding one step.
        let (mut number, step) = (scattered(100 + 1), scattered(2));
        for n in 0..1_000 {
            assert_eq!(number, scattered(100 + 1 + 2 * n));
            number = (number + step) % MODULUS;
        }
    }
}
