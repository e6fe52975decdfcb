//! The tasks that an instance cannot run without: its ports, and the refreshing of readiness and
//! metrics. They end when the instance stops. One that ends earlier is a defect and ends the
//! process, which the service manager then restarts.

use std::collections::HashMap;
use std::future::Future;

use tokio::runtime::Handle;
use tokio::task::{Id, JoinSet};

use super::supervisor::cause;

#[derive(Default)]
pub struct Tasks {
    set: JoinSet<()>,
    names: HashMap<Id, &'static str>,
}

impl Tasks {
    pub fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn_on(name, task, &Handle::current());
    }

    pub fn spawn_on(
        &mut self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
        runtime: &Handle,
    ) {
        let id = self.set.spawn_on(task, runtime).id();
        self.names.insert(id, name);
    }

    /// Waits until one task ends; returns its name and why it ended.
    pub async fn one_ends(&mut self) -> String {
        match self.set.join_next_with_id().await {
            Some(Ok((id, ()))) => format!("{} returned", self.name(id)),
            Some(Err(error)) => format!("{}: {}", self.name(error.id()), cause(error)),
            None => std::future::pending().await,
        }
    }

    /// Waits until all tasks have ended; panics are only logged.
    pub async fn all_end(&mut self) {
        while let Some(ended) = self.set.join_next_with_id().await {
            if let Err(error) = ended {
                let (task, why) = (self.name(error.id()), cause(error));
                tracing::error!(task, why, "a task of this process failed while it stopped");
            }
        }
    }

    fn name(&self, id: Id) -> &'static str {
        self.names.get(&id).copied().unwrap_or("a task")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_ends_is_named_with_its_cause() {
        let mut tasks = Tasks::default();
        tasks.spawn("the port of the API", std::future::pending());
        tasks.spawn("metrics", async { panic!("as planned") });
        assert_eq!(tasks.one_ends().await, "metrics: it panicked: as planned");
        tasks.spawn("readiness", async {});
        assert_eq!(tasks.one_ends().await, "readiness returned");
    }

    #[tokio::test]
    async fn a_panic_while_stopping_holds_up_nobody() {
        let mut tasks = Tasks::default();
        tasks.spawn("metrics", async { panic!("as planned") });
        tasks.all_end().await;
    }
}
