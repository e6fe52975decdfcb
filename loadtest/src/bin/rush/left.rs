//! Samples how many coupons and pieces are left during the run, for the report's charts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::crowd::{Crowd, number};

/// Interval between samples.
const SAMPLE_PAUSE: Duration = Duration::from_millis(200);
/// The same where samples show when the pieces of ended holds are back.
const SHORT_PAUSE: Duration = Duration::from_millis(40);

/// Name of the series of the product that is sold by card.
pub const PIECES_BY_CARD: &str = "pieces sold by card";

/// The remaining number of one scarce item over time.
#[derive(Clone, Debug, Default)]
pub struct Series {
    pub name: &'static str,
    /// The number at the beginning.
    pub limit: u64,
    /// Seconds since the start of the run, and the number left.
    pub samples: Vec<(f64, u64)>,
}

/// Samples until `stop`, and once more at the end. A failed read leaves a gap; whether the shop
/// answers is judged by the users' requests.
pub async fn sample(crowd: Arc<Crowd>, began: Instant, stop: CancellationToken) -> Vec<Series> {
    let mut series = vec![];
    if crowd.coupons > 0 {
        series.push(Series { name: "coupons", limit: crowd.coupons, samples: vec![] });
    }
    if crowd.pieces > 0 {
        series.push(Series { name: "pieces", limit: crowd.pieces, samples: vec![] });
    }
    let mut pause = SAMPLE_PAUSE;
    if crowd.card_pieces > 0 {
        series.push(Series { name: PIECES_BY_CARD, limit: crowd.card_pieces, samples: vec![] });
        pause = SHORT_PAUSE;
    }
    loop {
        let last = stop.is_cancelled();
        for one in &mut series {
            let (path, member) = match one.name {
                "coupons" => (format!("/v1/coupon-templates/{}", crowd.template()), "remaining"),
                PIECES_BY_CARD => (format!("/v1/products/{}", crowd.by_card()), "stock"),
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
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => {}
        }
    }
}
