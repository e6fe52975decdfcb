//! How many coupons and pieces are left, read from the shop while the crowd is at it: the report's picture.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::crowd::{Crowd, number};

/// How often the shop is asked.
const SAMPLE_PAUSE: Duration = Duration::from_millis(200);

/// One thing that runs out, over the run.
#[derive(Clone, Debug, Default)]
pub struct Series {
    pub name: &'static str,
    /// How many there were.
    pub limit: u64,
    /// Seconds since the run began, and how many were left.
    pub samples: Vec<(f64, u64)>,
}

/// Reads until `stop`, then once more. A read that fails leaves a gap: the run's own requests tell whether the shop answers.
pub async fn sample(crowd: Arc<Crowd>, began: Instant, stop: CancellationToken) -> Vec<Series> {
    let mut series = vec![];
    if crowd.coupons > 0 {
        series.push(Series { name: "coupons", limit: crowd.coupons, samples: vec![] });
    }
    if crowd.pieces > 0 {
        series.push(Series { name: "pieces", limit: crowd.pieces, samples: vec![] });
    }
    loop {
        let last = stop.is_cancelled();
        for one in &mut series {
            let (path, member) = match one.name {
                "coupons" => (format!("/v1/coupon-templates/{}", crowd.template()), "remaining"),
                _ => (format!("/v1/products/{}", crowd.scarce()), "stock"),
            };
            if let Ok(answer) = crowd.api.get(&path).await {
                one.samples.push((began.elapsed().as_secs_f64(), number(&answer, member)));
            }
        }
        if last {
            return series;
        }
        tokio::select! {
            () = tokio::time::sleep(SAMPLE_PAUSE) => {}
            () = stop.cancelled() => {}
        }
    }
}
