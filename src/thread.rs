//! Threads with a runtime of their own, for work that everybody waits for (the gate's connections and batchers, the
//! reconcilers) or that is to step back behind requests (the relay, the folding of metrics).
//!
//! One call of a script is under way at a time, and everybody who decides waits for it; one transaction at a time, and
//! `RUSHGATE_ACK=truth` waits for it. On the threads that serve requests, each of their steps (hand a command to the
//! connection, write, read, hand the answers out) would queue behind hundreds of connections that have something to do; here
//! each follows the one before at once.

use std::future::Future;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

#[derive(Debug, thiserror::Error)]
#[error("the thread {name} cannot run ({why}): give the process more threads or memory")]
pub struct ThreadError {
    name: &'static str,
    why: String,
}

/// Ends, with all that runs there, when it is dropped.
pub struct OwnThread {
    name: &'static str,
    runtime: Handle,
    _lives: oneshot::Sender<()>,
}

impl OwnThread {
    /// `name`: of at most 15 bytes, so that the system shows all of it. `niceness`: how far it, and the threads that are
    /// started there, step back behind others when the processors are busy, from the moment when this returns; see `nice(1)`.
    pub fn start(name: &'static str, niceness: u8) -> Result<Self, ThreadError> {
        let failed = |e: std::io::Error| ThreadError { name, why: e.to_string() };
        let runtime = Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let handle = runtime.handle().clone();
        let (lives, dropped) = oneshot::channel();
        let (sets, is_set) = std::sync::mpsc::channel();
        let run = move || {
            // On Linux it is the thread's own.
            if let Err(why) = rustix::process::nice(niceness.into()) {
                tracing::warn!(%why, thread = name, "its niceness cannot be set: it runs as all others");
            }
            drop(sets);
            let _ = runtime.block_on(dropped); // nothing is ever sent
        };
        std::thread::Builder::new().name(name.into()).spawn(run).map_err(failed)?;
        let _: Result<(), _> = is_set.recv(); // nothing is sent: it ends when the other end is dropped
        Ok(Self { name, runtime: handle, _lives: lives })
    }

    /// For spawning there.
    pub fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Runs `work` there; what it spawns stays there. An error says that it panicked.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, ThreadError> {
        self.runtime.spawn(work).await.map_err(|e| ThreadError { name: self.name, why: e.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thread_name() -> Option<String> {
        std::thread::current().name().map(str::to_owned)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_it_runs_and_what_that_spawns_stays_on_one_thread_until_it_is_dropped() {
        let thread = OwnThread::start("rushgate-gate", 0).unwrap();
        let names = async || (thread_name(), tokio::spawn(async { thread_name() }).await.unwrap());
        let name = Some("rushgate-gate".to_owned());
        assert_eq!(thread.run(names()).await.unwrap(), (name.clone(), name));
        let error = thread.run(async { panic!("as planned") }).await.unwrap_err().to_string();
        assert!(error.contains("rushgate-gate") && error.contains("as planned"), "{error}");

        let (alive, ended) = oneshot::channel::<()>();
        let waits = async move {
            tokio::spawn(async move {
                let _alive = alive;
                std::future::pending::<()>().await;
            });
        };
        thread.run(waits).await.unwrap();
        drop(thread);
        assert!(ended.await.is_err(), "the task was dropped, and nothing sent");
    }
}
