//! Orders that are paid outside, through kills and rebuilds.

use std::time::Duration;

use fred::interfaces::HashesInterface;
use futures::future::join_all;
use nix::sys::signal::Signal;
use rushgate::domain::wire::Id;
use rushgate::redis::keys::Keys;

use super::instances::{code, done};
use super::rebuilds::rebuild;
use super::{Clock, Outcome, Setup, Trial};
use crate::cluster::{HttpAnswer, Private, eventually};
use crate::history::record::{self, Ask};

const PRODUCT: &str = "product-held";
const HOLD_SECS: u64 = 60;
/// As RUSHGATE_PENDING_LIMIT is by default.
const HELD_PER_USER: usize = 5;
const SERVES_AGAIN: Duration = Duration::from_secs(15);

/// kill -9 the instance that placed an order before its payment is confirmed elsewhere.
pub async fn killed_before_confirming(seed: u64) -> Outcome {
    let mut trial = Trial::begin(seed, Setup::default()).await;
    stocked(&trial).await;
    for round in 0..3 {
        trial.a_while().await;
        let victim = trial.somebody();
        let placed = hold(&trial, victim, &format!("held-{round}"), round).await;
        trial.fleet.get(victim).signal(Signal::SIGKILL);
        let order = id_of(&placed);
        let confirm = || Ask::Confirm { order, reference: format!("card-{round}") };
        let other = trial.fleet.get(1 - victim);
        let paid = done(&trial, &other, confirm(), Some(format!("confirm-{round}"))).await;
        assert_eq!(paid.text("status"), "paid", "{paid:?}");
        trial.start_again(victim).await;
        let again = done(&trial, &trial.fleet.get(victim), confirm(), None).await;
        assert_eq!(again.body, paid.body, "the same payment again: the same answer");
        let twice = Ask::Confirm { order, reference: format!("card-{round}-twice") };
        let refused = trial.load.send(&other, twice, None).await;
        assert_eq!(code(&refused), "already-confirmed", "{refused:?}");
    }
    let (outcome, _) = trial.finish().await;
    assert_eq!(outcome.epochs, 1, "nothing was rebuilt");
    outcome
}

/// kill -9 all instances while they end many holds.
pub async fn sweep_killed(seed: u64) -> Outcome {
    const HELD: usize = 400;
    let clock = Clock::new();
    let private = Private { redis_under: clock.command(), ..Private::default() };
    let mut trial = Trial::begin(seed, Setup { private, ..Setup::default() }).await;
    stocked(&trial).await;
    hold_many(&trial, HELD).await;
    trial.a_while().await;
    let before = pending(&trial).await;
    assert!(before >= HELD as u64, "{before}");
    clock.set(&mut trial, 1_000 * (HOLD_SECS as i64 + 5)).await;
    eventually("holds end", || async { (pending(&trial).await < before).then_some(()) }).await;
    for instance in trial.fleet.all() {
        instance.signal(Signal::SIGKILL);
    }
    let left = pending(&trial).await;
    println!("{left} of {before} holds were left when the instances were killed");
    for number in 0..trial.fleet.all().len() {
        trial.start_again(number).await;
    }
    trial.serves_within(SERVES_AGAIN).await;
    eventually("every piece is back", || async {
        let ask = Ask::Product(PRODUCT.into());
        match trial.load.send(&trial.fleet.get(0), ask, None).await {
            record::Outcome::Answered(answer) => (answer.body["stock"] == STOCK).then_some(()),
            _ => None,
        }
    })
    .await;
    let (outcome, _) = trial.finish().await;
    assert_eq!(outcome.epochs, 1, "nothing was rebuilt");
    outcome
}

/// Rebuilds while thousands of orders are pending; afterwards they are confirmed or cancelled like
/// any other.
pub async fn rebuild_with_pending(seed: u64) -> Outcome {
    const HELD: usize = 2_000;
    let mut trial = Trial::begin(seed, Setup::default()).await;
    stocked(&trial).await;
    let orders = hold_many(&trial, HELD).await;
    for _ in 0..2 {
        trial.a_while().await;
        rebuild(&trial.settings, 0).await;
        trial.serves_within(SERVES_AGAIN).await;
        let loaded = pending(&trial).await;
        assert!(loaded >= HELD as u64, "{loaded} pending orders after the rebuild");
    }
    let instance = trial.fleet.get(0);
    let asks = orders.iter().enumerate().take(200).map(|(n, order)| match n % 2 {
        0 => Ask::Confirm { order: *order, reference: format!("card-many-{n}") },
        _ => Ask::Cancel { order: *order },
    });
    let answers = join_all(asks.map(|ask| done(&trial, &instance, ask, None))).await;
    let paid = answers.iter().filter(|answer| answer.text("status") == "paid").count();
    assert_eq!(paid, 100);
    trial.finish().await.0
}

/// Pieces of [`PRODUCT`] at the beginning.
const STOCK: u64 = 10_000;

async fn stocked(trial: &Trial) {
    let instance = trial.fleet.get(0);
    let name = "put held".to_owned();
    let product = || PRODUCT.to_owned();
    let put =
        Ask::PutProduct { product: product(), name, price: 100, status: "on_sale", stock: None };
    done(trial, &instance, put, None).await;
    let reason = "held stock".to_owned();
    let stock = Ask::Adjust { product: product(), delta: STOCK as i64, reason };
    done(trial, &instance, stock, Some("held-stock".into())).await;
}

async fn hold(trial: &Trial, instance: usize, user: &str, n: usize) -> HttpAnswer {
    let ask = Ask::Hold {
        user: user.to_owned(),
        lines: vec![(PRODUCT.to_owned(), 1)],
        coupon: None,
        wallet_amount: 0,
        hold_secs: HOLD_SECS,
        reference: None,
    };
    let placed =
        done(trial, &trial.fleet.get(instance), ask, Some(format!("{user}-hold-{n}"))).await;
    assert_eq!(placed.text("status"), "pending", "{placed:?}");
    placed
}

async fn hold_many(trial: &Trial, count: usize) -> Vec<Id> {
    let mut orders = Vec::with_capacity(count);
    for some in (0..count).collect::<Vec<_>>().chunks(100) {
        let placed = some
            .iter()
            .map(async |n| hold(trial, n % 2, &format!("many-{}", n / HELD_PER_USER), *n).await);
        orders.extend(join_all(placed).await.iter().map(id_of));
    }
    orders
}

fn id_of(placed: &HttpAnswer) -> Id {
    placed.text("order_id").parse().map(Id).unwrap()
}

/// Pending orders in the gate.
async fn pending(trial: &Trial) -> u64 {
    let epoch = trial.cluster.meta().await.epoch;
    trial.cluster.raw.hlen(Keys::new(0, epoch).pending()).await.unwrap()
}
