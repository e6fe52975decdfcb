//! Per-request context: what the handlers learn about a request, for the code that completes its
//! response (rate-limit headers, metrics).
//!
//! It is a task-local cell, set when a request's work starts and read when its response is made. An
//! extension of the response would do the same, at the cost of an allocation per request.

use std::cell::Cell;
use std::pin::Pin;

use axum::response::Response;

use super::accept::Language;

tokio::task_local! {
    static NOTES: Cell<RequestNotes>;
}

/// How much of a quota is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuotaState {
    pub of: Who,
    pub remaining: u32,
    /// Time until the quota is whole again.
    pub reset_secs: u64,
}

/// Whose quota it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    User,
    /// A user's writes.
    Write,
    Address,
}

/// What the work on a request leaves behind.
#[derive(Clone, Copy, Debug, Default)]
pub struct RequestNotes {
    /// The caller's rate-limit state, once the request was counted.
    pub quota: Option<QuotaState>,
    /// The code of the refusal that became the response; empty: none.
    pub refusal: &'static str,
    /// The language of texts for people.
    pub language: Language,
}

impl RequestNotes {
    fn new(language: Language) -> Cell<Self> {
        Cell::new(Self { language, ..Self::default() })
    }

    /// Runs a request's work; returns its response and the context that it left. The caller pins
    /// `work`, so the futures around it hold a pointer: each one that held the work by value would
    /// double the bytes that are moved for every request.
    pub async fn collect(
        language: Language,
        work: Pin<&mut (impl Future<Output = Response> + Send)>,
    ) -> (Response, Self) {
        let work = async {
            let response = work.await;
            (response, NOTES.with(Cell::get))
        };
        NOTES.scope(Self::new(language), work).await
    }

    /// The same for a response that needs no waiting.
    pub fn collect_now(language: Language, work: impl FnOnce() -> Response) -> (Response, Self) {
        NOTES.sync_scope(Self::new(language), || (work(), NOTES.with(Cell::get)))
    }

    /// The current request's context; outside of a request, the default.
    pub fn current() -> Self {
        NOTES.try_with(Cell::get).unwrap_or_default()
    }

    /// Changes the current request's context; does nothing outside of a request.
    pub fn note(change: impl FnOnce(&mut Self)) {
        let _ = NOTES.try_with(|current| {
            let mut now = current.get();
            change(&mut now);
            current.set(now);
        });
    }
}
