//! What is counted about requests. Handles are made at the first request of their kind and kept by each thread, so that
//! counting takes neither a lock nor an allocation.

use ::metrics::{Counter, Gauge, Histogram};
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::LazyLock;
use std::time::Duration;

use crate::telemetry::metrics::{HTTP_DURATION, HTTP_IN_FLIGHT, HTTP_REQUESTS};

thread_local! {
    /// By route and method, of which there are few.
    static ROUTES: RefCell<HashMap<String, Vec<RouteMeters>>> = RefCell::default();
}

struct RouteMeters {
    method: &'static str,
    duration: Histogram,
    /// By status and refusal code.
    answers: Vec<(u16, &'static str, Counter)>,
}

/// One request of `route` was answered.
pub fn answered(route: &str, method: &'static str, status: u16, code: &'static str, took: Duration) {
    ROUTES.with_borrow_mut(|routes| {
        let methods = match routes.get_mut(route) {
            Some(methods) => methods,
            None => routes.entry(route.to_owned()).or_default(),
        };
        let at = methods.iter().position(|meters| meters.method == method);
        let at = at.unwrap_or_else(|| {
            let duration = ::metrics::histogram!(HTTP_DURATION.name, "route" => route.to_owned(), "method" => method);
            methods.push(RouteMeters { method, duration, answers: Vec::new() });
            methods.len() - 1
        });
        let meters = &mut methods[at];
        meters.duration.record(took);
        match meters.answers.iter().find(|(s, c, _)| (*s, *c) == (status, code)) {
            Some((_, _, counter)) => counter.increment(1),
            None => {
                let counter = ::metrics::counter!(HTTP_REQUESTS.name, "route" => route.to_owned(), "method" => method,
                    "status" => status.to_string(), "code" => code);
                counter.increment(1);
                meters.answers.push((status, code, counter));
            }
        }
    });
}

/// A request being worked on; until it is dropped, also by a client that hangs up.
pub struct InFlight(());

static IN_FLIGHT: LazyLock<Gauge> = LazyLock::new(|| HTTP_IN_FLIGHT.gauge(&[]));

impl InFlight {
    pub fn begin() -> Self {
        IN_FLIGHT.increment(1.0);
        Self(())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        IN_FLIGHT.decrement(1.0);
    }
}
