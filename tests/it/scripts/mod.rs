//! The deciding scripts against the reference model: random batches of all seven scripts on a real Redis, each verdict,
//! each entry and in the end all that Redis holds compared with what the model says.
//!
//! A case is data ([`plan`]), made up from a seed ([`making`]); [`asking`] turns it into requests, [`case`] runs it, [`kind`] knows
//! how requests and verdicts look on the wire, [`state`] and [`reading`] compare what is stored and what reads answer.
//! [`defects`] plants mistakes in the scripts and sees each found, so that a comparison that compares nothing is noticed.
//!
//! A failure prints its seed and the smallest case that still fails. `RUSHGATE_TEST_SEED=<seed>` begins with that case.

mod asking;
mod case;
mod defects;
mod kind;
mod making;
mod plan;
mod reading;
mod state;

use std::cell::RefCell;
use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Instant;

use proptest::strategy::{BoxedStrategy, Strategy};
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestError, TestRunner};

use rushgate::domain::limits::MAX_ORDER_PRODUCTS;
use rushgate::gate::script::Script;

use case::{Bench, Tally};
use kind::{KINDS, Kind, Scripts};
use plan::Case;

/// Requests that are decided and compared in one run.
const OPERATIONS: u64 = 100_000;

/// Tries to make a failing case smaller.
const SHRINKING_TRIES: u32 = 5_000;

/// A case in which scripts and model differ.
struct Failure {
    seed: u64,
    /// Requests decided until then, in this and the cases before.
    operations: u64,
    why: String,
    case: Case,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, why, case, .. } = self;
        writeln!(
            f,
            "{why}\nRUSHGATE_TEST_SEED={seed} runs it again; the smallest case that was found:\n{case}"
        )
    }
}

/// A runtime and a Redis, shared by all cases of a test.
struct Checker {
    runtime: tokio::runtime::Runtime,
    bench: Bench,
    cases: fn() -> BoxedStrategy<Case>,
}

impl Checker {
    fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let bench = runtime.block_on(Bench::start());
        Self { runtime, bench, cases: || making::case().boxed() }
    }

    /// With as many requests as a call takes, and orders of as many lines as one may have.
    fn of_large_cases() -> Self {
        Self { cases: || making::large_case().boxed(), ..Self::start() }
    }

    /// Runs cases until so many operations are compared, or one fails. Each case has a seed of its own, so that it can
    /// be run first.
    fn check(
        &self,
        scripts: Scripts,
        base_seed: u64,
        operations: u64,
        shrink: u32,
    ) -> Result<Tally, Box<Failure>> {
        let tally = RefCell::new(Tally::default());
        for n in 0.. {
            let seed = base_seed.wrapping_add(n);
            let mut runner = runner(seed, shrink);
            let tree = (self.cases)().new_tree(&mut runner).unwrap();
            let until_failure = RefCell::new(None);
            let outcome = runner.run_one(tree, |case| {
                let outcome =
                    self.runtime.block_on(case::run(&self.bench, &scripts, &case, &mut tally.borrow_mut()));
                outcome.map_err(|why| {
                    until_failure.borrow_mut().get_or_insert(tally.borrow().operations);
                    TestCaseError::fail(why)
                })
            });
            match outcome {
                Ok(_) if tally.borrow().operations >= operations => break,
                Ok(_) => {}
                Err(TestError::Fail(why, case)) => {
                    let operations = until_failure.take().unwrap_or_default();
                    let failure = Failure { seed, operations, why: why.to_string(), case };
                    return Err(Box::new(if shrink > 0 { self.prune(scripts, failure) } else { failure }));
                }
                Err(TestError::Abort(why)) => panic!("{why}"),
            }
        }
        Ok(tally.into_inner())
    }

    /// Leaves out each part of a case that the failure does not need. Lists were made shorter before values were made
    /// smaller, so there may be some.
    fn prune(&self, scripts: Scripts, mut failure: Failure) -> Failure {
        let (mut n, mut shortened) = (0, false);
        while let Some(shorter) = failure.case.without(n) {
            let outcome =
                self.runtime.block_on(case::run(&self.bench, &scripts, &shorter, &mut Tally::default()));
            match outcome {
                Err(why) => (failure.case, failure.why, shortened) = (shorter, why, true),
                Ok(()) => n += 1,
            }
            // at the end, once more from the beginning, as long as that helps
            if failure.case.without(n).is_none() && std::mem::take(&mut shortened) {
                n = 0;
            }
        }
        failure
    }
}

fn runner(seed: u64, shrink: u32) -> TestRunner {
    TestRunner::new(Config {
        rng_seed: RngSeed::Fixed(seed),
        // a seed is all that a failure needs to come again
        failure_persistence: None,
        max_shrink_iters: shrink,
        max_shrink_time: 0, // none: tries are counted, so that a busy machine comes as far as an idle one
        ..Config::default()
    })
}

/// `RUSHGATE_TEST_SEED`, or another one each time.
fn base_seed() -> u64 {
    let seed = match std::env::var("RUSHGATE_TEST_SEED") {
        Ok(seed) => seed.parse().expect("RUSHGATE_TEST_SEED is not a number"),
        Err(_) => RandomState::new().build_hasher().finish() >> 32,
    };
    println!("RUSHGATE_TEST_SEED={seed}");
    seed
}

#[test]
fn the_scripts_decide_as_the_model_does() {
    let (checker, seed, begin) = (Checker::start(), base_seed(), Instant::now());
    let tally = match checker.check(Scripts::of_the_service(), seed, OPERATIONS, SHRINKING_TRIES) {
        Ok(tally) => tally,
        Err(f) => panic!("{f}"),
    };
    println!("{} operations in {} batches, {:?}", tally.operations, tally.batches, begin.elapsed());
    println!("{:#?}", tally.answers);
    assert!(tally.operations >= OPERATIONS);
    for label in every_answer() {
        let met = tally.answers.get(&label).copied().unwrap_or(0);
        assert!(met >= 20, "{label} was met {met} times only: the plans have become too tame");
    }
}

/// Requests that are decided and compared in large batches, or put off.
const FEWER_OPERATIONS: u64 = 10_000;

#[test]
fn large_batches_and_orders_are_decided_as_the_model_does() {
    let (checker, seed) = (Checker::of_large_cases(), base_seed());
    let tally = match checker.check(Scripts::of_the_service(), seed, FEWER_OPERATIONS, 200) {
        Ok(tally) => tally,
        Err(f) => panic!("{f}"),
    };
    assert_eq!((tally.largest_batch, tally.most_lines), (256, MAX_ORDER_PRODUCTS));
}

/// The bounds of what one call may touch, so low that they are met by users who hold few coupons.
fn easily_tired() -> Scripts {
    const BOUNDS: [(&str, &str); 5] = [
        ("HELD_WRITE_BYTES = 160 * 1024", "HELD_WRITE_BYTES = 100"),
        ("HELD_SMALL_BYTES = 1024", "HELD_SMALL_BYTES = 46"),
        ("HELD_READ_BYTES = 2 * 1024 * 1024", "HELD_READ_BYTES = 100"),
        ("HELD_PER_READ = 16", "HELD_PER_READ = 2"),
        ("STEPS_PER_CALL = 3000", "STEPS_PER_CALL = 10"),
    ];
    let tired = |script: &'static Script| -> &'static Script {
        let mut source = script.source().to_owned();
        let mut lowered = 0;
        for (bound, low) in BOUNDS {
            lowered += source.matches(bound).count();
            source = source.replace(bound, low);
        }
        assert_eq!(lowered, if script.decides { 4 } else { 1 }, "{}", script.name);
        Box::leak(Box::new(script.with_source(source.leak())))
    };
    let Scripts { deciding, read } = Scripts::of_the_service();
    Scripts { deciding: deciding.map(tired), read: tired(read) }
}

#[test]
fn what_a_script_puts_off_is_decided_as_the_model_does_when_it_is_asked_again() {
    let (checker, seed) = (Checker::start(), base_seed());
    let tally = match checker.check(easily_tired(), seed, FEWER_OPERATIONS / 4, SHRINKING_TRIES) {
        Ok(tally) => tally,
        Err(f) => panic!("{f}"),
    };
    println!("{} asked again", tally.asked_again);
    assert!(tally.asked_again >= 300, "only {} were put off", tally.asked_again);
}

/// All that a script can answer, as [`kind::Answer::label`] calls it.
fn every_answer() -> Vec<String> {
    let of = |kind: Kind| -> &[&str] {
        match kind {
            Kind::IssueCoupon => {
                &["UnknownTemplate", "AlreadyIssued", "NotOpenBefore", "ClosedSince", "SoldOut"]
            }
            Kind::ChargeWallet => &["BalanceLimit"],
            Kind::PlaceOrder => &[
                "UnknownProduct",
                "NotOnSale",
                "InsufficientStock",
                "UnknownCoupon",
                "CouponUsed",
                "CouponExpired",
                "SubtotalTooLow",
                "PriceChanged",
                "InsufficientBalance",
            ],
            Kind::CancelOrder => &["AlreadyCancelled", "UnknownProduct", "BalanceLimit", "StaleRead"],
            Kind::PutProduct => &["StockGiven"],
            Kind::AdjustStock => &["UnknownProduct", "BelowZero", "TooHigh"],
            Kind::PutTemplate => &["LimitBelowIssued"],
        }
    };
    let with_key = |kind: Kind| {
        if kind.takes_keys() { ["replayed", "key reused", "keys spent"].as_slice() } else { &[] }
    };
    let any = ["accepted", "late"];
    KINDS
        .into_iter()
        .flat_map(|kind| {
            any.iter().chain(with_key(kind)).chain(of(kind)).map(move |what| format!("{kind:?} {what}"))
        })
        .collect()
}
