//! Health of Redis and PostgreSQL, for `/readyz`. A background task checks both servers. A request
//! for `/readyz` triggers a new check and waits for it only briefly: probes must be answered in
//! time also while a server hangs.
//!
//! [`Health`] has a `Watched` for each server, which keeps the server's last check.

use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::config::bounds::{READY_LOOK, READY_PATIENCE, READY_STALE};
use crate::gate::{CellStatus, Gate};
use crate::truth::Truth;

/// The latest checks of both servers.
pub struct Health {
    /// `None`: this instance does not decide.
    gate: Option<(Arc<Gate>, Watched)>,
    truth: Watched,
}

impl Health {
    /// Nothing is known until [`Health::look_on`] runs. Without `gate`, Redis is not checked.
    pub fn new(gate: Option<Arc<Gate>>) -> Arc<Self> {
        let gate = gate.map(|gate| (gate, Watched::new("Redis")));
        Arc::new(Self { gate, truth: Watched::new("PostgreSQL") })
    }

    pub fn decides(&self) -> bool {
        self.gate.is_some()
    }

    /// Checks both servers until `stopping`.
    pub async fn look_on(self: Arc<Self>, truth: Truth, stopping: CancellationToken) {
        let looking_at_gate = async {
            match &self.gate {
                Some((gate, watched)) => watched.look_on(|| gate_troubles(gate)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = looking_at_gate => {}
            () = self.truth.look_on(|| truth_troubles(&truth)) => {}
            () = stopping.cancelled() => {}
        }
    }

    /// What keeps the gate from deciding, and what is wrong with PostgreSQL.
    pub async fn troubles(&self) -> (Vec<String>, Vec<String>) {
        let gate = async {
            match &self.gate {
                Some((gate, watched)) => {
                    let mut troubles = watched.troubles().await;
                    // The check may be older than the present connections to Redis.
                    if troubles.is_empty() {
                        troubles = gate.known_troubles();
                    }
                    troubles
                }
                None => Vec::new(),
            }
        };
        futures::join!(gate, self.truth.troubles())
    }
}

/// One server.
struct Watched {
    server: &'static str,
    asked: Notify,
    seen: watch::Sender<Option<Seen>>,
    since: Instant,
}

/// A completed check.
struct Seen {
    /// When it began.
    at: Instant,
    troubles: Vec<String>,
}

impl Watched {
    fn new(server: &'static str) -> Self {
        Self { server, asked: Notify::new(), seen: watch::Sender::new(None), since: Instant::now() }
    }

    async fn look_on<F: Future<Output = Vec<String>>>(&self, look: impl Fn() -> F) {
        loop {
            let at = Instant::now();
            let troubles = look().await;
            self.seen.send_replace(Some(Seen { at, troubles }));
            let _ = tokio::time::timeout(READY_LOOK, self.asked.notified()).await;
        }
    }

    /// The result of a new check if the server answers within [`READY_PATIENCE`], else of the last
    /// one. A server without an answer for [`READY_STALE`] is reported as such, whatever the last
    /// check found.
    async fn troubles(&self) -> Vec<String> {
        let asked = Instant::now();
        self.asked.notify_one();
        let mut seen = self.seen.subscribe();
        let fresh = seen.wait_for(|seen| seen.as_ref().is_some_and(|seen| seen.at >= asked));
        let _ = tokio::time::timeout(READY_PATIENCE, fresh).await; // or the last check
        let last = self.seen.borrow();
        let silent =
            asked.saturating_duration_since(last.as_ref().map_or(self.since, |seen| seen.at));
        match &*last {
            Some(seen) if silent < READY_STALE => seen.troubles.clone(),
            _ => {
                vec![format!("{} has not answered for {:.1} s", self.server, silent.as_secs_f64())]
            }
        }
    }
}

async fn truth_troubles(truth: &Truth) -> Vec<String> {
    truth.ping().await.err().map(|error| error.to_string()).into_iter().collect()
}

async fn gate_troubles(gate: &Gate) -> Vec<String> {
    match gate.status().await {
        Err(error) => vec![format!("Redis: {error}")],
        Ok(cells) => cells.into_iter().filter_map(cell_trouble).collect(),
    }
}

fn cell_trouble(status: CellStatus) -> Option<String> {
    let CellStatus { cell, state, reason, backlog_full, writes_refused_why, .. } = status;
    if let ("open", Some(why)) = (state.as_str(), writes_refused_why) {
        return Some(format!("cell {cell}: {why}"));
    }
    match (state.as_str(), reason) {
        ("open", _) if backlog_full => {
            Some(format!("cell {cell}: PostgreSQL is too far behind (backlog-full)"))
        }
        ("open", _) => None,
        (_, Some(reason)) => Some(format!("cell {cell} is {state}: {reason}")),
        (_, None) => Some(format!("cell {cell} is {state}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
    use std::time::Duration;

    /// Time limit for a probe's answer. 200 ms are promised on a machine that is not starved.
    const IN_TIME: Duration = Duration::from_millis(1_000);

    #[tokio::test]
    async fn an_answer_is_as_of_now_while_the_server_answers_and_in_time_while_it_hangs() {
        let watched = Arc::new(Watched::new("Redis"));
        let (hangs, looks) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let looking = {
            let (watched, hangs, looks) =
                (Arc::clone(&watched), Arc::clone(&hangs), Arc::clone(&looks));
            tokio::spawn(async move {
                let look = || {
                    let (hang, number) =
                        (hangs.load(Ordering::SeqCst), looks.fetch_add(1, Ordering::SeqCst));
                    async move {
                        if hang {
                            std::future::pending::<()>().await;
                        }
                        vec![format!("look {number}")]
                    }
                };
                watched.look_on(look).await;
            })
        };
        let (first, second) = (watched.troubles().await, watched.troubles().await);
        assert!(
            first[0].starts_with("look ") && second[0].starts_with("look ") && first != second,
            "fresh"
        );
        hangs.store(true, Ordering::SeqCst);
        let hung = Instant::now();
        let mut said = watched.troubles().await;
        assert!(said[0].starts_with("look "), "what was seen last: {said:?}");
        while said[0].starts_with("look ") {
            let asked = Instant::now();
            said = watched.troubles().await;
            assert!(asked.elapsed() < IN_TIME, "{:?}", asked.elapsed());
            assert!(hung.elapsed() < READY_STALE * 5, "it must be said in the end");
        }
        assert!(
            hung.elapsed() >= READY_STALE / 2 && said[0].starts_with("Redis has not answered for "),
            "{said:?}"
        );
        looking.abort();
    }
}
