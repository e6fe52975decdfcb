//! The gate's own thread: its connections and its batchers run there, and nothing else.
//!
//! One call of a script is under way at a time, and everybody who decides waits for it. On the threads that serve requests,
//! each step of a call (hand it to the connection, write, read, hand the verdicts out) would queue behind hundreds of
//! connections that have something to do; here each follows the one before at once.

use std::future::Future;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// Ends, with all that runs there, when it is dropped.
pub struct GateThread {
    runtime: Handle,
    _lives: oneshot::Sender<()>,
}

impl GateThread {
    pub fn start() -> std::io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (lives, dropped) = oneshot::channel();
        std::thread::Builder::new().name("rushgate-gate".into()).spawn(move || {
            let _ = runtime.block_on(dropped); // nothing is ever sent
        })?;
        Ok(Self { runtime: handle, _lives: lives })
    }

    /// Runs `work` there; what it spawns stays there. The error says that it panicked.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, tokio::task::JoinError> {
        self.runtime.spawn(work).await
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
        let gate = GateThread::start().unwrap();
        let names = async || (thread_name(), tokio::spawn(async { thread_name() }).await.unwrap());
        let name = Some("rushgate-gate".to_owned());
        assert_eq!(gate.run(names()).await.unwrap(), (name.clone(), name));
        assert!(gate.run(async { panic!("as planned") }).await.unwrap_err().is_panic());

        let (alive, ended) = oneshot::channel::<()>();
        let waits = async move {
            tokio::spawn(async move {
                let _alive = alive;
                std::future::pending::<()>().await;
            });
        };
        gate.run(waits).await.unwrap();
        drop(gate);
        assert!(ended.await.is_err(), "the task was dropped, and nothing sent");
    }
}
