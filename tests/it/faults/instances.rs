//! Instances that die, stall, or lose their connection.

use nix::sys::signal::Signal;

use super::{Outcome, Setup, Trial};

/// kill -9 an instance, whatever it was doing: somewhere between a script and the answers to it, too.
pub async fn instance_killed(seed: u64) -> Outcome {
    let mut trial = Trial::begin(seed, Setup::default()).await;
    for _ in 0..3 {
        trial.a_while().await;
        let victim = trial.somebody();
        trial.fleet.get(victim).signal(Signal::SIGKILL);
        trial.start_again(victim).await;
    }
    // Clients repeat with the same key; the checker sees to it that they get the first answer, and one effect.
    let (outcome, _) = trial.finish().await;
    assert_eq!(outcome.epochs, 1, "nothing was rebuilt");
    outcome
}
