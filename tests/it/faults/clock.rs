//! The Redis clock jumps forward and backward. Redis runs under libfaketime, which reads the offset
//! from a file.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use fred::interfaces::ClientLike;
use fred::types::CustomCommand;
use futures::future::join;
use jiff::{SignedDuration, Timestamp};
use rushgate::domain::wire::Id;
use serde_json::json;

use super::instances::{code, done};
use super::proxy::Behind;
use super::{Outcome, Setup, Trial};
use crate::cluster::{HttpAnswer, Private, eventually};
use crate::history::record::{self, Ask};
use crate::servers::{TempFolder, tempfile};

/// Debian's path of the library. The dynamic loader expands `$LIB`.
const LIBRARY: &str = "/usr/$LIB/faketime/libfaketime.so.1";
const MINUTE_MS: i64 = 60_000;
const SERVES_AGAIN: Duration = Duration::from_secs(15);
/// Request deadline at the instance behind the proxy.
const DEADLINE_MS: u64 = 800;

/// The Redis clock jumps ahead by about an hour and back, past the end of one template's window and
/// the start of another's. What was seen as over stays over, what was seen as open stays open, and
/// nothing else changes.
pub async fn clock_set(seed: u64) -> Outcome {
    let clock = Clock::new();
    let private = Private { redis_under: clock.command(), ..Private::default() };
    let deadline = DEADLINE_MS.to_string();
    let changes = [("RUSHGATE_REQUEST_TIMEOUT_MS", deadline.as_str())];
    let setup = Setup { private, ..Setup::default() };
    let (mut trial, behind) = Behind::begin(seed, setup, &changes).await;
    let shop = Shop::open(&trial).await;
    for (step, off_ms) in steps(&mut trial).into_iter().enumerate() {
        clock.set(&mut trial, off_ms).await;
        trial.serves_within(SERVES_AGAIN).await;
        let ahead = trial.expect.clock_off_ms.iter().any(|(_, ms)| *ms > 30 * MINUTE_MS);
        shop.ask(&trial, step, ahead).await;
        if step > 0 {
            deadlines_pass(&trial, &behind, step).await;
        }
        trial.a_while().await;
        if trial.rng.u8(..3) == 0 {
            trial.settings.run(&["rebuild"]).await;
            trial.open_epoch().await;
            shop.ask(&trial, 10 + step, ahead).await;
        }
    }
    shop.use_coupon(&trial).await;
    trial.finish().await.0
}

/// The Redis clock is days ahead. The gate refuses to date anything by it, even under load. When
/// the clock is corrected, service resumes.
pub async fn clock_far_ahead(seed: u64) -> Outcome {
    let clock = Clock::new();
    let private = Private { redis_under: clock.command(), ..Private::default() };
    let mut trial = Trial::begin(seed, Setup { private, ..Setup::default() }).await;
    for _ in 0..2 {
        trial.a_while().await;
        let ahead_ms = trial.rng.i64(1..60) * 24 * 60 * MINUTE_MS;
        clock.set(&mut trial, ahead_ms).await;
        for instance in trial.fleet.all() {
            eventually("/readyz says why", || async {
                let (status, body) = instance.readiness().await;
                (status == 503 && body["reasons"].to_string().contains("Redis' clock is far ahead"))
                    .then_some(())
            })
            .await;
            let metrics = instance.ops("/metrics").await.1;
            let ahead = metrics
                .lines()
                .find_map(|line| line.strip_prefix("rushgate_clock_ahead_seconds{cell=\"0\"} "));
            let ahead: f64 = ahead.unwrap().parse().unwrap();
            assert!(ahead > 80_000.0, "{ahead}");
        }
        let charge = Ask::Charge { user: HOLDER.into(), amount: 1_000 };
        let outcome =
            trial.load.send(&trial.fleet.get(0), charge, Some("clock-ahead".into())).await;
        assert_eq!(code(&outcome), "gate-unavailable", "{outcome:?}");
        clock.set(&mut trial, 0).await;
        trial.serves_within(SERVES_AGAIN).await;
        let off_ms = trial.cluster.meta().await.clock_ms - Timestamp::now().as_millisecond();
        assert!(off_ms < 60 * MINUTE_MS, "the gate's clock is {off_ms} ms ahead");
    }
    let (outcome, _) = trial.finish().await;
    assert_eq!(outcome.epochs, 1, "nothing was rebuilt");
    outcome
}

/// Clock offsets in milliseconds: always about an hour ahead at some point, then back.
fn steps(trial: &mut Trial) -> Vec<i64> {
    let rng = &mut trial.rng;
    let hour = |rng: &mut fastrand::Rng| rng.i64(45..75) * MINUTE_MS;
    let mut steps = vec![-hour(rng), 0];
    rng.shuffle(&mut steps);
    steps.truncate(1);
    steps.push(hour(rng));
    let mut back = [-hour(rng), 0];
    rng.shuffle(&mut back);
    steps.extend(back);
    steps
}

/// The clock that Redis sees.
pub struct Clock {
    folder: TempFolder,
}

impl Clock {
    pub fn new() -> Self {
        let clock = Self { folder: tempfile() };
        clock.set_off(0);
        clock
    }

    fn file(&self) -> PathBuf {
        self.folder.path.join("clock")
    }

    pub fn set_off(&self, off_ms: i64) {
        let new = self.folder.path.join("new");
        std::fs::write(&new, format!("{:+}\n", off_ms / 1_000)).unwrap();
        std::fs::rename(new, self.file()).unwrap(); // atomic, so that Redis never reads half a line
    }

    /// The command that starts Redis under this clock. libfaketime reads the file at every call for
    /// the time. The monotonic clock stays real, as if a real wall clock had been set. libfaketime
    /// needs the C library's allocator: jemalloc asks for the time before libfaketime is
    /// initialised.
    pub fn command(&self) -> Vec<OsString> {
        let mut file = OsString::from("FAKETIME_TIMESTAMP_FILE=");
        file.push(self.file());
        let preload = format!("LD_PRELOAD={LIBRARY} libc.so.6");
        let rest = ["FAKETIME_NO_CACHE=1", "FAKETIME_DONT_FAKE_MONOTONIC=1"];
        ["/usr/bin/env".into(), preload.into(), file]
            .into_iter()
            .chain(rest.map(OsString::from))
            .collect()
    }

    pub async fn set(&self, trial: &mut Trial, off_ms: i64) {
        self.set_off(off_ms);
        let off = |now_ms: i64| now_ms - Timestamp::now().as_millisecond();
        let found = off(time_of_redis(trial).await);
        assert!(
            (found - off_ms).abs() < 20_000,
            "Redis' clock is {found} ms off, and should be {off_ms}"
        );
        trial.expect.clock_off_ms.push((trial.load.now_us(), off_ms));
    }
}

async fn time_of_redis(trial: &Trial) -> i64 {
    let time = || {
        trial
            .cluster
            .raw
            .custom(CustomCommand::new_static("TIME", None, false), Vec::<String>::new())
    };
    let [seconds, micros]: [i64; 2] = eventually("Redis tells the time", || async {
        let told: Vec<i64> = time().await.ok()?;
        told.try_into().ok()
    })
    .await;
    seconds * 1_000 + micros / 1_000
}

/// Two templates, whose windows end and start in half an hour, and a user with a coupon that no
/// client touches.
struct Shop {
    coupon: record::Outcome,
}

const CLOSING: &str = "template-closing";
const OPENING: &str = "template-opening";
const HOLDER: &str = "user-clock-0";

impl Shop {
    async fn open(trial: &Trial) -> Self {
        let instance = trial.fleet.get(0);
        let now = Timestamp::now();
        let minutes = |n: i64| (now + SignedDuration::from_mins(n)).to_string();
        for (template, from, until) in [(CLOSING, -180, 30), (OPENING, 30, 600)] {
            let body = json!({ "name": template, "discount": { "type": "amount", "value": 100 },
                "max_issued": 50, "issue_from": minutes(from), "issue_until": minutes(until) });
            done(trial, &instance, Ask::PutTemplate { template: template.into(), body }, None)
                .await;
        }
        let put = Ask::PutProduct {
            product: "product-clock".into(),
            name: "clock".into(),
            price: 500,
            status: "on_sale",
            stock: None,
        };
        done(trial, &instance, put, None).await;
        let stock =
            Ask::Adjust { product: "product-clock".into(), delta: 5, reason: "clock-stock".into() };
        done(trial, &instance, stock, Some("clock-stock".into())).await;
        let shop = Self { coupon: issue(trial, 0, CLOSING, 0).await };
        assert!(is(&shop.coupon, 201), "{:?}", shop.coupon);
        assert_eq!(code(&issue(trial, 1, OPENING, 0).await), "issuance-not-open");
        shop
    }

    /// Checks the answers at both instances. `ahead` means that the clock has been past both
    /// boundaries.
    async fn ask(&self, trial: &Trial, step: usize, ahead: bool) {
        for instance in [0, 1] {
            let user = 1 + 2 * step + instance;
            let closing = issue(trial, instance, CLOSING, user).await;
            let opening = issue(trial, instance, OPENING, user).await;
            if ahead {
                assert_eq!(code(&closing), "issuance-closed", "{closing:?}");
                assert!(is(&opening, 201), "{opening:?}");
            } else {
                assert!(is(&closing, 201), "{closing:?}");
                assert_eq!(code(&opening), "issuance-not-open", "{opening:?}");
            }
            assert_eq!(
                state(trial, instance, CLOSING).await,
                if ahead { "closed" } else { "open" }
            );
            assert_eq!(
                state(trial, instance, OPENING).await,
                if ahead { "open" } else { "scheduled" }
            );
            self.nothing_expired(trial, instance).await;
        }
    }

    /// The first coupon is still valid, and its key still replays the first answer.
    async fn nothing_expired(&self, trial: &Trial, instance: usize) {
        let again = issue(trial, instance, CLOSING, 0).await;
        let (Some(first), Some(again)) = (answer(&self.coupon), answer(&again)) else {
            panic!("{again:?}")
        };
        assert!(again.replayed && again.body == first.body, "{again:?}");
        let held = read(trial, instance, Ask::Coupons(HOLDER.into())).await;
        assert_eq!(held.body["data"][0]["status"], "available", "{held:?}");
    }

    async fn use_coupon(&self, trial: &Trial) {
        let instance = trial.fleet.get(0);
        let coupon =
            answer(&self.coupon).map(|answer| answer.text("coupon_id").parse().map(Id).unwrap());
        let user = String::from(HOLDER);
        let charge = Ask::Charge { user: user.clone(), amount: 1_000 };
        done(trial, &instance, charge, Some("clock-charge".into())).await;
        let lines = vec![("product-clock".into(), 1)];
        let order = Ask::Order { user, lines, coupon, expected_total: Some(400) };
        done(trial, &instance, order, Some("clock-order".into())).await;
    }
}

/// A user's request for a coupon, always with the same key.
async fn issue(trial: &Trial, instance: usize, template: &str, user: usize) -> record::Outcome {
    let ask = Ask::Issue { template: template.into(), user: format!("user-clock-{user}") };
    let key = format!("{template}-{user}");
    clear(trial, instance, ask, Some(key)).await
}

async fn read(trial: &Trial, instance: usize, ask: Ask) -> HttpAnswer {
    let outcome = clear(trial, instance, ask, None).await;
    answer(&outcome).cloned().unwrap_or_else(|| panic!("{outcome:?}"))
}

async fn state(trial: &Trial, instance: usize, template: &str) -> String {
    read(trial, instance, Ask::Template(template.into())).await.text("state")
}

/// Repeats the request until the outcome is clear: neither a 503 nor a missing answer.
async fn clear(trial: &Trial, instance: usize, ask: Ask, key: Option<String>) -> record::Outcome {
    let instance = trial.fleet.get(instance);
    eventually("a clear answer", || async {
        let outcome = trial.load.send(&instance, ask.clone(), key.clone()).await;
        answer(&outcome).is_some_and(|answer| answer.status < 500).then_some(outcome)
    })
    .await
}

fn answer(outcome: &record::Outcome) -> Option<&HttpAnswer> {
    match outcome {
        record::Outcome::Answered(answer) => Some(answer),
        _ => None,
    }
}

fn is(outcome: &record::Outcome, status: u16) -> bool {
    answer(outcome).is_some_and(|answer| answer.status == status)
}

/// A call that reaches Redis after its deadline is refused, whatever the clock was set to before.
async fn deadlines_pass(trial: &Trial, behind: &Behind, step: usize) {
    let instance = trial.fleet.get(1);
    behind.proxy.hold_calls();
    let delay = async {
        behind.proxy.until_held().await;
        tokio::time::sleep(Duration::from_millis(DEADLINE_MS + 200)).await;
        behind.proxy.release();
    };
    let charge = Ask::Charge { user: "user-clock-late".into(), amount: 100 };
    let (outcome, ()) =
        join(trial.load.send(&instance, charge, Some(format!("clock-late-{step}"))), delay).await;
    assert!(["overloaded", "outcome-unknown"].contains(&code(&outcome)), "{outcome:?}");
}
