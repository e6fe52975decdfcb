//! Metrics of requests. Each thread creates a metric's handle at the first request of its kind and
//! keeps it, so that counting takes neither a lock nor an allocation.

use ::metrics::{Counter, Gauge, Histogram};
use std::cell::RefCell;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::Duration;

use matchit::Router;

use crate::telemetry::metrics::{HTTP_DURATION, HTTP_IN_FLIGHT, HTTP_REQUESTS};

/// The routes under their names in metrics: their paths, and `none` for everything else. axum
/// matches paths with the same library, but only code inside of the route learns the result.
pub struct Routes {
    numbers: Router<usize>,
    names: Vec<String>,
}

impl Routes {
    /// The number for paths that no route has.
    const NONE: usize = 0;

    pub fn new<'a>(paths: impl IntoIterator<Item = &'a str>) -> Self {
        let mut routes = Self { numbers: Router::new(), names: vec!["none".to_owned()] };
        for path in paths {
            // Conflicting paths are refused by axum when it builds its own router.
            if routes.numbers.insert(path, routes.names.len()).is_ok() {
                routes.names.push(path.to_owned());
            }
        }
        routes
    }

    /// The number of the route that has this path.
    pub fn of(&self, path: &str) -> usize {
        self.numbers.at(path).map_or(Self::NONE, |found| *found.value)
    }

    pub fn name(&self, number: usize) -> &str {
        self.names.get(number).map_or("none", String::as_str)
    }
}

thread_local! {
    /// By the route's number, then by method (a short list).
    static ROUTES: RefCell<Vec<Vec<RouteMeters>>> = RefCell::default();
}

struct RouteMeters {
    method: &'static str,
    duration: Histogram,
    /// By status and refusal code.
    answers: Vec<(u16, &'static str, Counter)>,
}

/// Counts an answered request of a route (its number, its name).
pub fn answered(
    (number, route): (usize, &str),
    method: &'static str,
    status: u16,
    code: &'static str,
    took: Duration,
) {
    ROUTES.with_borrow_mut(|routes| {
        if routes.len() <= number {
            routes.resize_with(number + 1, Vec::new);
        }
        let methods = &mut routes[number];
        let at = methods.iter().position(|metrics| metrics.method == method);
        let at = at.unwrap_or_else(|| {
            let duration = ::metrics::histogram!(HTTP_DURATION.name, "route" => route.to_owned(), "method" => method);
            methods.push(RouteMeters { method, duration, answers: Vec::new() });
            methods.len() - 1
        });
        let metrics = &mut methods[at];
        metrics.duration.record(took);
        match metrics.answers.iter().find(|(s, c, _)| (*s, *c) == (status, code)) {
            Some((_, _, counter)) => counter.increment(1),
            None => {
                let counter = ::metrics::counter!(HTTP_REQUESTS.name, "route" => route.to_owned(), "method" => method,
                    "status" => status.to_string(), "code" => code);
                counter.increment(1);
                metrics.answers.push((status, code, counter));
            }
        }
    });
}

/// Counts a request in flight until it is dropped, also when the client hangs up.
pub struct InFlight(&'static AtomicI64);

/// Requests in flight, in shards. A thread's shard is nearly always its own: one counter for all
/// would move between cores twice per request. Only the sum is meaningful, as a request may end on
/// another thread.
static SHARDS: [Shard; 16] = [const { Shard(AtomicI64::new(0)) }; 16];

/// Aligned to the unit in which processors fetch memory, so that no two shards share one.
#[repr(align(128))]
struct Shard(AtomicI64);

thread_local! {
    static MINE: &'static AtomicI64 = {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        &SHARDS[NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS.len()].0
    };
}

impl InFlight {
    pub fn begin() -> Self {
        let shard = MINE.with(|mine| *mine);
        shard.fetch_add(1, Ordering::Relaxed);
        Self(shard)
    }

    /// Updates the gauge, just before it is read.
    pub fn publish() {
        static IN_FLIGHT: LazyLock<Gauge> = LazyLock::new(|| HTTP_IN_FLIGHT.gauge(&[]));
        let sum: i64 = SHARDS.iter().map(|shard| shard.0.load(Ordering::Relaxed)).sum();
        // Threads count during the sum, so it may be off by their changes.
        IN_FLIGHT.set(sum.max(0) as f64);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_named_by_their_paths() {
        let routes = Routes::new([
            "/v1/products",
            "/v1/products/{id}",
            "/v1/products/popular",
            "/docs/{*path}",
        ]);
        let name = |path| routes.name(routes.of(path));
        assert_eq!(name("/v1/products/mug"), "/v1/products/{id}");
        assert_eq!(name("/v1/products/popular"), "/v1/products/popular");
        assert_eq!(name("/docs/a/b.js"), "/docs/{*path}");
        assert_eq!([name("/v1/products/"), name("/"), name("")], ["none"; 3]);
    }
}
