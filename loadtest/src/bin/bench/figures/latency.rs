//! Latency and lag while coupons are issued at a steady rate (open loop).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

use rushgate_loadtest::http::{Drive, Pace};
use rushgate_loadtest::redis::Redis;
use rushgate_loadtest::shop::FOLLOWERS_NICENESS;
use rushgate_loadtest::{Outcome, say};

use super::{Figure, Measured, Target};
use crate::harness::{Harness, SETTLE_LIMIT};
use crate::rows::Row;
use crate::statistics::readable;
use crate::wrk::{Gaps, scattered};

/// Enough connections that no request waits for a free one unless the server stalls.
const CONNECTIONS: usize = 1_024;
/// Interval at which the sampler reads the log's position.
const LOOK: Duration = Duration::from_millis(2);
/// An entry that is not applied by then has an infinite lag.
const APPLY_LIMIT: Duration = Duration::from_secs(60);

pub async fn gate_and_lag(harness: &mut Harness, per_s: f64) -> Outcome<Vec<Measured>> {
    let (mut latencies, mut lags) = (vec![], vec![]);
    for _ in 0..harness.rounds {
        let (latency, lag) = round(harness, per_s).await?;
        say(format_args!("{:.0}/s: p99 {latency:.1} ms, lag p99 {lag:.1} ms", per_s));
        latencies.push(latency);
        lags.push(lag);
    }
    let note = format!("at {}/s", readable(per_s));
    Ok(vec![
        Measured::new(Figure::LatencyGate, latencies, "ms", Target::AtMost(8.0)).note(&note),
        Measured::new(Figure::Lag, lags, "ms", Target::AtMost(250.0)).note(&note),
    ])
}

pub async fn truth(harness: &mut Harness, per_s: f64) -> Outcome<Measured> {
    harness.shop.settle(SETTLE_LIMIT).await?;
    // Here the answers wait for PostgreSQL, which therefore runs without a lower priority.
    harness.exchange_both(0, &[("RUSHGATE_ACK", "truth")]).await?;
    let mut latencies = vec![];
    for _ in 0..harness.rounds {
        let (latency, _) = round(harness, per_s).await?;
        say(format_args!("{per_s:.0}/s, ACK=truth: p99 {latency:.1} ms"));
        latencies.push(latency);
    }
    harness.exchange_both(FOLLOWERS_NICENESS, &[]).await?;
    let note = format!("at {}/s", readable(per_s));
    Ok(Measured::new(Figure::LatencyTruth, latencies, "ms", Target::AtMost(40.0)).note(note))
}

/// The p99 of latency and lag, in ms.
async fn round(harness: &mut Harness, per_s: f64) -> Outcome<(f64, f64)> {
    harness.prepare_shop(&[Row::Issue])?;
    harness.shop.settle(SETTLE_LIMIT).await?;
    let plan = harness.plan(Row::Issue, harness.length)?;
    let Gaps::New { from } = plan.gaps else { return Err("issuing takes new users".into()) };
    let count = (per_s * harness.length.as_secs_f64()) as u64;
    let drive = Drive {
        address: harness.instance()?.api,
        connections: CONNECTIONS,
        pace: Pace::PerSecond(per_s),
        count,
    };
    // Flushes what earlier rows have written. Otherwise the kernel would write it to disk 30 s
    // later, during this measurement.
    nix::unistd::sync();
    let sampler = Sampler::start(harness.shop.redis.port());
    let mut latencies = Vec::with_capacity(usize::try_from(count)?);
    let write = |index, out: &mut Vec<u8>| {
        out.extend_from_slice(plan.parts[0].as_bytes());
        out.extend_from_slice(format!("{:010}", scattered(from + index)).as_bytes());
        out.extend_from_slice(plan.parts[1].as_bytes());
    };
    drive.run(write, |answer| {
        // A request that failed counts as an infinite latency.
        let served = answer.status == 201;
        latencies.push(if served { answer.latency.as_secs_f64() * 1e3 } else { f64::INFINITY });
        Ok(())
    })?;
    let lags = sampler.finish()?;
    Ok((p99(latencies), p99(lags)))
}

pub fn p99(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values
        .get((values.len() * 99 / 100).min(values.len().saturating_sub(1)))
        .copied()
        .unwrap_or(f64::INFINITY)
}

/// Repeatedly reads the positions of the log and of PostgreSQL. An entry's lag is the time from the
/// sample that first saw it logged to the one that first saw it applied.
struct Sampler {
    stop: Arc<AtomicBool>,
    looking: JoinHandle<Result<Vec<f64>, String>>,
}

impl Sampler {
    fn start(port: u16) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        Self { stop, looking: spawn(move || look(port, &told).map_err(|e| e.to_string())) }
    }

    fn finish(self) -> Outcome<Vec<f64>> {
        self.stop.store(true, Ordering::Relaxed);
        Ok(self.looking.join().map_err(|_| "the sampler panicked")??)
    }
}

fn look(port: u16, stop: &AtomicBool) -> Outcome<Vec<f64>> {
    let mut redis = Redis::connect(port)?;
    let (mut waiting, mut lags) = (std::collections::VecDeque::new(), vec![]);
    let (mut last, mut give_up) = (redis.log()?.seq, None);
    loop {
        let (log, now) = (redis.log()?, Instant::now());
        while waiting.front().is_some_and(|(seq, _)| *seq <= log.applied) {
            let (_, since) = waiting.pop_front().ok_or("it was there")?;
            lags.push(now.duration_since(since).as_secs_f64() * 1e3);
        }
        if log.seq > last && give_up.is_none() {
            waiting.push_back((log.seq, now));
            last = log.seq;
        }
        if stop.load(Ordering::Relaxed) {
            let give_up = *give_up.get_or_insert(now + APPLY_LIMIT);
            if waiting.is_empty() || now > give_up {
                lags.extend(waiting.iter().map(|_| f64::INFINITY));
                return Ok(lags);
            }
        }
        sleep(LOOK);
    }
}
