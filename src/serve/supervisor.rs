//! Keeps the background roles running: a role that panics or returns is logged, and restarted after
//! a pause that grows with each restart.

use std::any::Any;
use std::fmt::Display;
use std::future::Future;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::task::JoinError;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::config::bounds::{ROLE_RESTART_FIRST, ROLE_RESTART_MAX};
use crate::telemetry::metrics;

/// Runs a role on `runtime` until `stop`; `start` creates each run. A run must reset its gauges
/// when it is dropped, which also happens on a panic.
pub async fn supervise<F, E>(
    role: &'static str,
    runtime: Handle,
    stop: CancellationToken,
    mut start: impl FnMut() -> F,
) where
    F: Future<Output = Result<(), E>> + Send + 'static,
    E: Display + Send + 'static,
{
    let restarts = metrics::ROLE_RESTARTS.counter(&[("role", role)]);
    let mut pause = ROLE_RESTART_FIRST;
    while !stop.is_cancelled() {
        let began = Instant::now();
        // Aborted when this task is dropped, as at the end of a shutdown.
        let ended = AbortOnDropHandle::new(runtime.spawn(start())).await;
        if stop.is_cancelled() {
            return;
        }
        let why = match ended {
            Ok(Ok(())) => "it returned, which is a defect".to_owned(),
            Ok(Err(error)) => error.to_string(),
            Err(error) => cause(error),
        };
        restarts.increment(1);
        pause = next_pause(pause, began.elapsed());
        let pause_ms = pause.as_millis();
        tracing::error!(role, why, pause_ms, "a role has ended and is started again");
        let _ = stop.run_until_cancelled(tokio::time::sleep(pause)).await;
        pause = (pause * 2).min(ROLE_RESTART_MAX);
    }
}

/// A run that lasted longer than the longest pause counts as recovered.
fn next_pause(pause: Duration, ran_for: Duration) -> Duration {
    if ran_for > ROLE_RESTART_MAX { ROLE_RESTART_FIRST } else { pause }
}

/// Why a task ended, as text for the log.
pub fn cause(error: JoinError) -> String {
    match error.try_into_panic() {
        Ok(panic) => format!("it panicked: {}", panic_message(&*panic)),
        Err(error) => error.to_string(),
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message")
}

#[cfg(test)]
mod tests {
    use super::*;
    use metrics_exporter_prometheus::PrometheusBuilder;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// Like the roles' gauges: set while the role runs, cleared when it is dropped.
    struct Leading(Arc<AtomicU32>);

    impl Drop for Leading {
        fn drop(&mut self) {
            self.0.store(0, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_role_that_panics_or_ends_is_started_again_and_its_gauge_is_cleared() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let (runs, leading) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let stop = CancellationToken::new();
        let start = {
            let (runs, leading, stop) = (Arc::clone(&runs), Arc::clone(&leading), stop.clone());
            move || {
                assert_eq!(leading.load(Ordering::SeqCst), 0, "cleared before the next run");
                let (run, leads, stop) = (
                    runs.fetch_add(1, Ordering::SeqCst),
                    Leading(Arc::clone(&leading)),
                    stop.clone(),
                );
                async move {
                    leads.0.store(1, Ordering::SeqCst);
                    match run {
                        0 => panic!("as planned"),
                        1 => return Ok(()),
                        2 => return Err("Redis is away"),
                        _ => {}
                    }
                    stop.cancel();
                    Ok(())
                }
            }
        };
        let supervised = supervise("relay", runtime.handle().clone(), stop.clone(), start);
        ::metrics::with_local_recorder(&recorder, || runtime.block_on(supervised));
        assert_eq!((runs.load(Ordering::SeqCst), leading.load(Ordering::SeqCst)), (4, 0));
        assert!(
            handle.render().contains("rushgate_role_restarts_total{role=\"relay\"} 3"),
            "{}",
            handle.render()
        );
    }

    #[test]
    fn pauses_grow_to_a_bound_and_start_over_after_a_good_run() {
        assert_eq!(next_pause(ROLE_RESTART_MAX, Duration::from_secs(1)), ROLE_RESTART_MAX);
        assert_eq!(next_pause(ROLE_RESTART_MAX, ROLE_RESTART_MAX * 2), ROLE_RESTART_FIRST);
    }

    #[tokio::test]
    async fn the_log_names_what_a_panic_said() {
        let ended = tokio::spawn(async { panic!("row {} is missing", 7) }).await;
        assert_eq!(cause(ended.unwrap_err()), "it panicked: row 7 is missing");
    }
}
