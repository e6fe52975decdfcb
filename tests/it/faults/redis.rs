//! Redis dies, stalls, forgets, fills up.

use std::time::Duration;

use super::{Outcome, Setup, Trial};

/// kill -9 Redis and start it again: it has all that it acknowledged.
pub async fn redis_killed(seed: u64) -> Outcome {
    let mut trial = Trial::begin(seed, Setup::default()).await;
    for _ in 0..2 {
        trial.a_while().await;
        trial.cluster.redis.kill().await;
        trial.cluster.redis.restart().await.unwrap();
        trial.serves_within(Duration::from_secs(5)).await;
    }
    let (outcome, _) = trial.finish().await;
    assert_eq!(outcome.epochs, 1, "the same epoch goes on");
    outcome
}
