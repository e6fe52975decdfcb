//! Faults on real processes, each at a random moment under load, each ending with the history checker.
//!
//! [`FAULTS`] lists all of them. `./dev test` runs each once ([`short`]); `./dev chaos` runs them over and over with
//! other seeds ([`chaos`]) and prints a table.

mod chaos;
mod clock;
mod instances;
mod proxy;
mod rebuilds;
mod redis;
mod trial;

use futures::future::BoxFuture;

pub use trial::{Outcome, Setup, Trial};

/// One way in which things go wrong.
#[derive(Clone, Copy)]
pub struct Fault {
    pub name: &'static str,
    /// What must be seen; each is asserted.
    pub expected: &'static str,
    pub run: fn(u64) -> BoxFuture<'static, Outcome>,
}

/// Lists faults, and makes a test of each for `./dev test`.
macro_rules! faults {
    ($($module:ident :: $name:ident: $expected:literal;)*) => {
        pub const FAULTS: &[Fault] = &[$(Fault {
            name: stringify!($name),
            expected: $expected,
            run: |seed| Box::pin($module::$name(seed)),
        }),*];

        mod short {
            $(#[tokio::test]
            async fn $name() {
                let outcome = Box::pin(super::$module::$name(super::trial::seed())).await;
                println!("{outcome:?}");
            })*
        }
    };
}

faults! {
    instances::instance_killed: "the same key gives the first answer";
    instances::instance_killed_unheard: "the same key gives the first answer, marked as a repeat";
    instances::instance_stalled: "late requests are refused by the script and change nothing";
    instances::answers_lost: "outcome-unknown; repeated: one effect";
    rebuilds::rebuild_under_traffic: "one epoch wins; nothing is written into an old one";
    rebuilds::rebuild_overtaken: "the overtaken rebuild opens nothing, nothing is written into its epoch";
    clock::clock_set: "the window does not reopen; nothing expires; requests are decided, late ones are not";
    rebuilds::rebuilds_at_once: "one epoch wins; nothing is written into an old one";
    redis::redis_killed: "nothing acknowledged is lost; same epoch; serving again within 5 s";
}
