//! What is learnt about a request on the way to its answer, for whoever completes the answer: a cell that only the request's
//! own work sees, as an extension of the response would be, and without its allocations.

use std::cell::Cell;
use std::pin::Pin;

use axum::response::Response;

use super::rates::Standing;

tokio::task_local! {
    static CURRENT: Cell<Current>;
}

/// What handlers leave behind.
#[derive(Clone, Copy, Debug, Default)]
pub struct Current {
    /// Where the caller stands, once somebody has counted it.
    pub standing: Option<Standing>,
    /// The code of the refusal that was made into the answer; empty: none was.
    pub refusal: &'static str,
}

impl Current {
    /// Runs a request's work; returns its answer, and what was left behind. `work` is pinned by the caller, so that futures
    /// around it hold an address: each that held the work itself would double what is moved for every request.
    pub async fn told(work: Pin<&mut (impl Future<Output = Response> + Send)>) -> (Response, Self) {
        let work = async {
            let response = work.await;
            (response, CURRENT.with(Cell::get))
        };
        CURRENT.scope(Cell::default(), work).await
    }

    /// The same for an answer that needs no waiting.
    pub fn told_now(work: impl FnOnce() -> Response) -> (Response, Self) {
        CURRENT.sync_scope(Cell::default(), || (work(), CURRENT.with(Cell::get)))
    }

    /// Outside of a request nobody is interested.
    pub fn leave(change: impl FnOnce(&mut Self)) {
        let _ = CURRENT.try_with(|current| {
            let mut now = current.get();
            change(&mut now);
            current.set(now);
        });
    }
}
