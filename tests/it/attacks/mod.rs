//! Attacks on a real instance. Each tests one defence.
//!
//! [`ATTACKS`] lists all of them. `./dev test` runs each once in a short form. `./dev attack` runs
//! them at length ([`attack`]) and prints a table. An attack returns its number of attempts and
//! asserts that the defence holds.

mod business;
mod connections;
mod fuzz;
mod injection;
mod json;
mod limits;
mod rights;
mod schemathesis;
mod secrets;
mod smuggling;
mod tls;
mod tokens;
mod wire;

use std::time::Instant;

use futures::future::LocalBoxFuture;

pub use tls::certify;
pub use wire::connect as connect_to;

/// A way of abusing the service.
#[derive(Clone, Copy)]
pub struct Attack {
    pub name: &'static str,
    /// The property that must hold.
    pub defence: &'static str,
    run: fn(usize) -> LocalBoxFuture<'static, usize>,
}

/// Builds the list of attacks, and a test of each for `./dev test`.
macro_rules! attacks {
    ($($module:ident :: $name:ident: $defence:literal;)*) => {
        pub const ATTACKS: &[Attack] = &[$(Attack {
            name: stringify!($name),
            defence: $defence,
            run: |effort| Box::pin($module::$name(effort)),
        }),*];

        mod short {
            $(#[tokio::test]
            async fn $name() {
                let tried = Box::pin(super::$module::$name(1)).await;
                assert!(tried > 0, "it tried nothing");
                println!("{tried} tried");
            })*
        }
    };
}

attacks! {
    tokens::strange_tokens: "every route refuses tokens that are missing, forged, expired, of another audience, issuer, algorithm or key";
    tokens::keys_rotated: "a key taken out of the file ends its tokens within two seconds; a broken file changes nothing";
    tokens::token_replayed_after_its_end: "a remembered token ends in the second that it names";
    connections::idle_connections: "others are answered meanwhile, in time";
    connections::all_connections_taken: "idle ones are closed in favour of those who come";
    connections::slow_headers: "cut after the time limit";
    connections::slow_bodies: "408 after the time limit; they hold no place meanwhile";
    connections::answers_left_unread: "cut after the time limit, on HTTP/1 and on a single HTTP/2 stream";
    connections::half_closed: "cut; others are answered";
    connections::too_many_headers: "refused or cut";
    connections::pipelined: "answered in their order";
    connections::streams_reset: "the connection ends; others are answered";
    smuggling::smuggled_requests: "the request behind another is never seen";
    injection::ids_and_keys: "refused, or stored as it is; nothing else changes; the audit is clean";
    injection::log_lines: "one event is one line, without control characters";
    json::hostile_json: "4xx, in time; nothing changes";
    limits::one_user_on_many_connections: "no more than the quota and what refills; others are not concerned";
    limits::a_crowd_behind_one_address: "nobody is refused by the default settings";
    limits::addresses_made_up: "X-Forwarded-For counts from trusted proxies only";
    limits::a_truth_that_hangs: "reads of orders are shed; the catalogue, decisions and staff go on";
    limits::a_rush_without_end: "decisions are shed; the catalogue and staff go on";
    business::keys_across_users: "a key belongs to its user";
    business::ids_guessed: "somebody else's is as if it were not there, in every byte";
    business::quota_by_many_tokens: "a user's quota is the user's, whatever the token";
    secrets::secrets_looked_for: "in no log, help, metric, error or answer";
    rights::least_rights: "the main way works; every right left out is refused";
    tls::another_protocol: "TLS only where TLS is set; a new certificate without a restart";
    fuzz::decoders_fuzzed: "refused, never a panic";
    schemathesis::described_api: "no 5xx; every answer as described, by each scope and by none";
}

/// Run by `./dev attack`, which documents the settings.
#[test]
#[ignore = "takes long; run it by ./dev attack"]
fn attack() {
    let only = std::env::var("RUSHGATE_ATTACK_ONLY").unwrap_or_default();
    let effort = std::env::var("RUSHGATE_ATTACK_EFFORT").map_or(10, |text| text.parse().unwrap());
    let mut failed = Vec::new();
    println!("| attack | what holds | tried | result |\n|---|---|---|---|");
    for attack in ATTACKS.iter().filter(|attack| only.is_empty() || attack.name == only) {
        let started = Instant::now();
        // On a separate thread and runtime, like a test.
        let outcome = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
            runtime.unwrap().block_on((attack.run)(effort))
        });
        let (tried, result) = match outcome.join() {
            Ok(tried) => (tried.to_string(), format!("held ({} s)", started.elapsed().as_secs())),
            Err(_) => {
                failed.push(attack.name);
                ("?".to_owned(), "FAILED".to_owned())
            }
        };
        println!("| `{}` | {} | {tried} | {result} |", attack.name, attack.defence);
    }
    assert!(failed.is_empty(), "failed: {failed:?}");
}
