//! Threads with a tokio runtime of their own, for work that many requests wait for (the gate's
//! connections and batchers, the reconcilers) or that must yield to requests (the relay, the
//! folding of metrics).
//!
//! Only one call of a script is in flight at a time, and every request to be decided waits for it.
//! Likewise only one applying transaction is, and `RUSHGATE_ACK=truth` waits for it. On the threads
//! that serve requests, each step of such a call (pass the command to the connection, write, read,
//! distribute the answers) would queue behind hundreds of ready connections. On a thread of its own
//! each step follows the one before immediately.

use std::future::Future;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

#[derive(Debug, thiserror::Error)]
#[error("the thread {name} cannot run ({why}): give the process more threads or memory")]
pub struct ThreadError {
    name: &'static str,
    why: String,
}

/// A thread and its runtime. Dropping it ends the thread and all tasks on it.
pub struct DedicatedRuntime {
    name: &'static str,
    runtime: Handle,
    _lives: oneshot::Sender<()>,
}

impl DedicatedRuntime {
    /// `name`: at most 15 bytes, so that the system shows all of it. `niceness`: see `nice(1)`; it
    /// is set, for this thread and for threads started from it, before this function returns.
    pub fn start(name: &'static str, niceness: u8) -> Result<Self, ThreadError> {
        let failed = |e: std::io::Error| ThreadError { name, why: e.to_string() };
        let runtime = Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let handle = runtime.handle().clone();
        let (lives, dropped) = oneshot::channel();
        let (sets, is_set) = std::sync::mpsc::channel();
        let run = move || {
            // On Linux, niceness belongs to the thread.
            if let Err(why) = rustix::process::nice(niceness.into()) {
                tracing::warn!(%why, thread = name, "the thread's niceness cannot be set; it keeps the default");
            }
            drop(sets);
            // Nothing is ever sent: this ends when the sender is dropped.
            let _ = runtime.block_on(dropped);
        };
        std::thread::Builder::new().name(name.into()).spawn(run).map_err(failed)?;
        // Nothing is ever sent: this ends when the sender is dropped.
        let _: Result<(), _> = is_set.recv();
        Ok(Self { name, runtime: handle, _lives: lives })
    }

    /// The runtime, for spawning tasks on the thread.
    pub fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Runs `work` on the thread; tasks that it spawns stay there. An error means that it panicked.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, ThreadError> {
        self.runtime
            .spawn(work)
            .await
            .map_err(|e| ThreadError { name: self.name, why: e.to_string() })
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
        let thread = DedicatedRuntime::start("rushgate-gate", 0).unwrap();
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
