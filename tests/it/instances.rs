//! Several instances act as one: whatever they are asked concurrently, nothing is sold, issued,
//! paid or used twice.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use futures::future::join_all;
use serde_json::{Value, json};

use crate::cluster::*;

#[tokio::test]
async fn five_hundred_coupons_for_a_thousand_users_who_ask_twice() {
    let (cluster, pair) = Cluster::two().await;
    pair.done(&Request::put_template("rush", 500)).await;
    let ask = |n: usize| {
        let user = format!("user-{}", n % 1_000);
        Request::issue("rush", &user).by(&user)
    };
    // The second round skips one user, so that each user asks both instances.
    let answers = pair.at_once((0..1_000).chain(1_001..=2_000).map(ask)).await;
    let (issued, refused) = sorted(&answers);
    assert_eq!(issued.len(), 500, "{refused:?}");
    let serials: HashSet<u64> = issued.iter().map(|c| c["serial"].as_u64().unwrap()).collect();
    assert_eq!(serials, (1..=500).collect());
    let users: HashSet<&str> = issued.iter().map(|c| c["user_id"].as_str().unwrap()).collect();
    assert_eq!(users.len(), 500);
    assert!(
        refused.keys().all(|code| ["sold-out", "already-issued"].contains(code)),
        "{refused:?}"
    );

    cluster.assert_consistent().await;
    let known = "SELECT coupon_id || ' ' || user_id || ' ' || serial FROM coupons";
    let known: HashSet<String> = cluster.texts(known).await.into_iter().collect();
    let text = |c: &Value, name: &str| c[name].as_str().unwrap().to_owned();
    let told = issued
        .iter()
        .map(|c| format!("{} {} {}", text(c, "coupon_id"), text(c, "user_id"), c["serial"]));
    assert_eq!(known, told.collect::<HashSet<_>>());
}

#[tokio::test]
async fn two_hundred_pieces_for_five_hundred_orders() {
    let (cluster, pair) = Cluster::two().await;
    pair.done(&Request::put_product("shoe", 10_000, 200)).await;
    let charged =
        pair.at_once((0..500).map(|n| Request::charge(&format!("user-{n}"), 10_000))).await;
    assert!(charged.iter().all(|a| a.status == 201));

    let answers =
        pair.at_once((0..500).map(|n| Request::order(&format!("user-{n}"), "shoe", 1))).await;
    let (placed, refused) = sorted(&answers);
    assert_eq!((placed.len(), refused), (200, HashMap::from([("insufficient-stock", 300)])));
    assert_eq!(pair.done(&Request::get("/v1/products/shoe")).await["stock"], 0);

    cluster.assert_consistent().await;
    let known: HashSet<String> =
        cluster.texts("SELECT order_id::text FROM orders").await.into_iter().collect();
    assert_eq!(known, placed.iter().map(|o| o["order_id"].as_str().unwrap().to_owned()).collect());
    assert_eq!(cluster.number("SELECT sum(balance)::bigint FROM wallets").await, 300 * 10_000);
}

#[tokio::test]
async fn a_balance_for_ten_pays_ten_of_fifty_orders() {
    let (cluster, pair) = Cluster::two().await;
    pair.done(&Request::put_product("mug", 10_000, 1_000)).await;
    pair.done(&Request::charge("ann", 105_000)).await;

    let answers = pair.at_once((0..50).map(|_| Request::order("ann", "mug", 1).by("ann"))).await;
    let (placed, refused) = sorted(&answers);
    assert_eq!((placed.len(), refused), (10, HashMap::from([("insufficient-balance", 40)])));
    let mut balances: Vec<u64> = placed.iter().map(|o| o["balance"].as_u64().unwrap()).collect();
    balances.sort_unstable();
    assert_eq!(balances, (0..10).map(|n| 5_000 + n * 10_000).collect::<Vec<_>>());
    assert_eq!(pair.done(&Request::get("/v1/users/ann/wallet")).await["balance"], 5_000);
    assert_eq!(pair.done(&Request::get("/v1/products/mug")).await["stock"], 990);
    cluster.assert_consistent().await;
}

#[tokio::test]
async fn one_coupon_in_twenty_orders_is_used_once() {
    let (cluster, pair) = Cluster::two().await;
    pair.done(&Request::put_product("mug", 10_000, 1_000)).await;
    pair.done(&Request::put_template("welcome", 10)).await;
    pair.done(&Request::charge("ann", 1_000_000)).await;
    let coupon = pair.done(&Request::issue("welcome", "ann")).await["coupon_id"]
        .as_str()
        .unwrap()
        .to_owned();

    let order = || Request::order("ann", "mug", 1).coupon(&coupon);
    let answers = pair.at_once((0..20).map(|_| order())).await;
    let (placed, refused) = sorted(&answers);
    assert_eq!((placed.len(), refused), (1, HashMap::from([("coupon-not-available", 19)])));
    assert_eq!((&placed[0]["total"], &placed[0]["balance"]), (&json!(9_000), &json!(991_000)));
    let held = pair.done(&Request::get("/v1/users/ann/coupons?status=used")).await;
    assert_eq!(held["data"][0]["order_id"], placed[0]["order_id"]);
    cluster.assert_consistent().await;
}

#[tokio::test]
async fn a_repeated_key_has_one_effect_and_one_answer() {
    let (cluster, pair) = Cluster::two().await;
    pair.done(&Request::put_product("mug", 10_000, 1_000)).await;
    pair.done(&Request::put_template("welcome", 10)).await;
    pair.done(&Request::charge("ann", 100_000)).await;
    let once = async |request: Request| {
        let answers = pair.at_once((0..20).map(|_| request.clone())).await;
        assert!(answers.iter().all(|a| (200..300).contains(&a.status)), "{answers:#?}");
        assert!(answers.iter().all(|a| a.body == answers[0].body), "{answers:#?}");
        assert_eq!(answers.iter().filter(|a| !a.replayed).count(), 1, "{answers:#?}");
        answers[0].clone()
    };
    once(Request::charge("ann", 50_000).key("a charge")).await;
    once(Request::issue("welcome", "ann").key("a coupon")).await;
    let placed = once(Request::order("ann", "mug", 2).key("an order")).await;
    once(Request::restock("mug", 5).key("a delivery")).await;
    assert_eq!(placed.body["balance"], 130_000);
    assert_eq!(pair.done(&Request::get("/v1/products/mug")).await["stock"], 1_003);

    let other = pair.any().send(&Request::order("ann", "mug", 3).key("an order")).await;
    assert_eq!((other.status, other.code()), (422, "idempotency-key-reused"));
    once(Request::cancel(&placed.text("order_id")).key("a cancellation")).await;
    assert_eq!(pair.done(&Request::get("/v1/users/ann/wallet")).await["balance"], 150_000);
    let counts = "SELECT (SELECT count(*) FROM orders) * 100 + (SELECT count(*) FROM coupons) * 10
                  + (SELECT count(*) FROM wallet_entries WHERE kind = 'charge')";
    cluster.assert_consistent().await;
    assert_eq!(cluster.number(counts).await, 112);
}

#[tokio::test]
async fn a_busy_shop_on_two_instances_stays_consistent() {
    let (cluster, pair) = Cluster::two().await;
    for n in 0..4 {
        pair.done(&Request::put_product(&format!("p-{n}"), 1_000 * (n + 1), 50)).await;
    }
    for n in 0..3 {
        pair.done(&Request::put_template(&format!("t-{n}"), 20)).await;
    }
    let until = Instant::now() + Duration::from_secs(4);
    let shoppers = (0..32).map(|n| {
        let pair = &pair;
        async move {
            let mut shopper = Shopper { dice: 0x9E37_79B9 + n, ..Shopper::default() };
            while Instant::now() < until {
                shopper.turn(pair).await;
            }
            shopper.accepted
        }
    });
    let accepted: HashMap<&str, usize> = join_all(shoppers).await.into_iter().flatten().fold(
        HashMap::new(),
        |mut sums, (what, n)| {
            *sums.entry(what).or_default() += n;
            sums
        },
    );
    println!("accepted: {accepted:?}");
    cluster.assert_consistent().await;
    let counts = [
        (
            "charge",
            cluster.number("SELECT count(*) FROM wallet_entries WHERE kind = 'charge'").await,
        ),
        ("coupon", cluster.number("SELECT count(*) FROM coupons").await),
        ("order", cluster.number("SELECT count(*) FROM orders").await),
        ("cancel", cluster.number("SELECT count(*) FROM orders WHERE status = 'cancelled'").await),
        ("restock", cluster.number("SELECT count(*) - 4 FROM stock_adjustments").await),
    ];
    for (what, count) in counts {
        assert!(count > 0, "no {what}");
        assert_eq!(i64::try_from(accepted[what]).unwrap(), count, "{what}");
    }
}

/// A client that makes pseudo-random requests, the same in every run.
#[derive(Default)]
struct Shopper {
    dice: u64,
    coupons: Vec<String>,
    orders: Vec<String>,
    accepted: HashMap<&'static str, usize>,
}

impl Shopper {
    fn roll(&mut self, sides: u64) -> u64 {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        self.dice % sides
    }

    async fn turn(&mut self, pair: &Pair) {
        // Few users, so that requests contend for the same wallets.
        let (user, product) = (format!("user-{}", self.roll(12)), format!("p-{}", self.roll(4)));
        let (what, request) = match self.roll(10) {
            0 | 1 => ("charge", Request::charge(&user, 10_000)),
            2 => ("coupon", Request::issue(&format!("t-{}", self.roll(3)), &user)),
            3 => ("restock", Request::restock(&product, 5)),
            4 | 5 if !self.orders.is_empty() => {
                let order = self.orders.swap_remove(0);
                ("cancel", Request::cancel(&order))
            }
            6 if !self.coupons.is_empty() => {
                let coupon = self.coupons.swap_remove(0);
                let (owner, coupon) = coupon.split_once(' ').unwrap();
                ("order", Request::order(owner, &product, 1).coupon(coupon))
            }
            _ => {
                let quantity = 1 + self.roll(3);
                ("order", Request::order(&user, &product, quantity))
            }
        };
        let answer = pair.any().send(&request).await;
        assert!(answer.status < 500, "{request:?}: {answer:?}");
        if answer.status >= 300 {
            return;
        }
        *self.accepted.entry(what).or_default() += 1;
        match what {
            "order" => self.orders.push(answer.text("order_id")),
            "coupon" => self.coupons.push(format!("{user} {}", answer.text("coupon_id"))),
            _ => {}
        }
    }
}
