//! Model-based tests of the deciding scripts: random batches of all nine scripts run on a real
//! Redis. Each verdict, each entry and finally everything that Redis holds is compared with the
//! reference model.
//!
//! A case is data ([`plan`]), generated from a seed ([`making`]). [`asking`] turns it into requests
//! and [`case`] runs it. [`kind`] knows the wire format of requests and verdicts. [`state`] and
//! [`reading`] compare stored data and reads. [`defects`] plants mistakes in the scripts and checks
//! that each is found, which proves that the comparisons work.
//!
//! A failure prints its seed and the smallest case that still fails. `RUSHGATE_TEST_SEED=<seed>`
//! begins with that case.

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

/// Requests to decide and compare in one run.
const OPERATIONS: u64 = 100_000;

/// Limit of attempts to shrink a failing case.
const SHRINKING_TRIES: u32 = 5_000;

/// A case in which the scripts and the model differ.
struct Failure {
    seed: u64,
    /// Requests decided so far, including those of earlier cases.
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

    /// Uses calls with the maximum number of requests, and orders with the maximum number of lines.
    fn of_large_cases() -> Self {
        Self { cases: || making::large_case().boxed(), ..Self::start() }
    }

    /// Runs cases until enough requests are compared, or until one fails. Each case has its own
    /// seed, so that it can be run first.
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
                let outcome = self.runtime.block_on(case::run(
                    &self.bench,
                    &scripts,
                    &case,
                    &mut tally.borrow_mut(),
                ));
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
                    return Err(Box::new(if shrink > 0 {
                        self.prune(scripts, failure)
                    } else {
                        failure
                    }));
                }
                Err(TestError::Abort(why)) => panic!("{why}"),
            }
        }
        Ok(tally.into_inner())
    }

    /// Removes every part of a case that the failure does not need. Proptest shortens lists before
    /// it simplifies values, so some parts may have become superfluous.
    fn prune(&self, scripts: Scripts, mut failure: Failure) -> Failure {
        let (mut n, mut shortened) = (0, false);
        while let Some(shorter) = failure.case.without(n) {
            let outcome = self.runtime.block_on(case::run(
                &self.bench,
                &scripts,
                &shorter,
                &mut Tally::default(),
            ));
            match outcome {
                Err(why) => (failure.case, failure.why, shortened) = (shorter, why, true),
                Ok(()) => n += 1,
            }
            // At the end, starts again from the beginning as long as that removes something.
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
        // The seed is enough to reproduce a failure.
        failure_persistence: None,
        max_shrink_iters: shrink,
        // No time limit: attempts are counted, so that a busy machine shrinks as far as an idle
        // one.
        max_shrink_time: 0,
        ..Config::default()
    })
}

/// `RUSHGATE_TEST_SEED`, or a random seed.
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
        assert!(met >= 5, "{label} was met {met} times only: the plans have become too tame");
    }
}

/// Requests to decide and compare in large batches, or in calls that defer some.
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

/// Scripts with the limits of one call set so low that users with few coupons reach them.
fn easily_tired() -> Scripts {
    const BOUNDS: [(&str, &str); 6] = [
        ("HELD_WRITE_BYTES = 160 * 1024", "HELD_WRITE_BYTES = 100"),
        ("HELD_SMALL_BYTES = 1024", "HELD_SMALL_BYTES = 46"),
        ("HELD_READ_BYTES = 2 * 1024 * 1024", "HELD_READ_BYTES = 100"),
        ("HELD_PER_READ = 16", "HELD_PER_READ = 2"),
        ("STEPS_PER_CALL = 3000", "STEPS_PER_CALL = 10"),
        ("MOST_TERMS = 200", "MOST_TERMS = 1"),
    ];
    let tired = |script: &'static Script| -> &'static Script {
        let mut source = script.source().to_owned();
        let mut lowered = 0;
        for (bound, low) in BOUNDS {
            lowered += source.matches(bound).count();
            source = source.replace(bound, low);
        }
        let expected = match script.name {
            "read" => 1,
            "put_template" => 5,
            _ => 4,
        };
        assert_eq!(lowered, expected, "{}", script.name);
        Box::leak(Box::new(script.with_source(source.leak())))
    };
    let Scripts { deciding, read, .. } = Scripts::of_the_service();
    Scripts { deciding: deciding.map(tired), read: tired(read), most_versions: Some(1) }
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
    let too_many = tally.answers.get("PutTemplate TooManyTerms").copied().unwrap_or(0);
    println!("terms were changed too often {too_many} times");
    assert!(too_many >= 3, "terms were changed too often {too_many} times only");
}

/// Every answer that a script can give, by the name that [`kind::ScriptAnswer::label`] uses.
fn every_answer() -> Vec<String> {
    let of = |kind: Kind| -> &[&str] {
        match kind {
            Kind::IssueCoupon => &[
                "UnknownTemplate",
                "AlreadyIssued",
                "NotOpenBefore",
                "ClosedSince",
                "SoldOut",
                "later terms",
            ],
            Kind::ChargeWallet => &["BalanceLimit"],
            Kind::PlaceOrder => &[
                "UnknownProduct",
                "NotOnSale",
                "SaleNotOpen",
                "SaleEnded",
                "PurchaseLimit",
                "InsufficientStock",
                "UnknownCoupon",
                "CouponUsed",
                "CouponExpired",
                "SubtotalTooLow",
                "PriceChanged",
                "WalletAmountAbove",
                "TooManyPending",
                "InsufficientBalance",
                "held",
                "paid at once",
            ],
            Kind::CancelOrder => &[
                "AlreadyCancelled",
                "NotPending",
                "UnknownProduct",
                "BalanceLimit",
                "StaleRead",
                "held",
                "paid outside",
            ],
            Kind::ConfirmOrder => &["NotPending", "HoldExpired"],
            Kind::ExpireOrder => &["NotPending", "NotDue", "counted"],
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
            any.iter()
                .chain(with_key(kind))
                .chain(of(kind))
                .map(move |what| format!("{kind:?} {what}"))
        })
        .collect()
}
