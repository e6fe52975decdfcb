//! Users with very many coupons: their requests are split into short calls, so that others are not
//! delayed.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fred::prelude::*;
use futures::future::join_all;
use rushgate::domain::CouponStatus;
use rushgate::domain::fact::Facts;
use rushgate::domain::wire::{self, Blob, Id};
use rushgate::gate::IssueRefusal;
use rushgate::gate::batch::Batch;
use rushgate::gate::script::{ISSUE_COUPON, READ, Reply};
use rushgate::log::reader::LogReader;
use rushgate::redis::held_coupons::{COUPON_BYTES, HeldCoupon};
use rushgate::redis::keys::{DAY_MS, Keys};
use rushgate::redis::records::TemplateRecord;
use uuid::Uuid;

use crate::cluster::{Cluster, Instance, Request};
use crate::shop::*;

const HOLDERS: u32 = 64;
const COUPONS: u32 = 1_000;
/// Maximum bytes of coupons that one call writes; see lua/shared/batch.lua.
const HELD_WRITE_BYTES: usize = 160 * 1024;

fn holder(n: u32) -> String {
    format!("holder-{n}")
}

fn coupon(holder: u32, n: u32) -> HeldCoupon {
    HeldCoupon {
        terms_number: n + 1,
        coupon_id: Uuid::from_u128(u128::from(holder) << 64 | u128::from(n) | 0x0192 << 112),
        serial: holder + 1,
        issued_at: 1_700_000_000_000 + i64::from(n),
        order_id: (n == 0).then(|| Uuid::from_u128(7)),
    }
}

/// Writes templates and holders of all of them directly into the gate; issuing the coupons would
/// take minutes.
async fn put_holders(raw: &Client, keys: &Keys, holders: u32, coupons: u32) {
    let record = |n: u32| TemplateRecord {
        number: u64::from(n) + 1,
        name: format!("Template {n}"),
        discount_type: "amount".to_owned(),
        discount_value: 1_000,
        discount_max: None,
        min_subtotal: 0,
        max_issued: 1_000_000,
        issue_from: 0,
        issue_until: 4_000_000_000_000,
        later_terms: None,
    };
    let (mut templates, mut numbers) = (Vec::new(), Vec::new());
    for n in 0..coupons {
        let id = format!("old-{n}");
        templates.push((Bytes::from(id.clone()), Bytes::from(wire::pack(&record(n)).unwrap())));
        numbers.push((Bytes::copy_from_slice(&(n + 1).to_be_bytes()), Bytes::from(id)));
    }
    let hset = async |key: String, fields: Vec<(Bytes, Bytes)>| {
        let flat =
            fields.into_iter().flat_map(|(name, value)| [Value::Bytes(name), Value::Bytes(value)]);
        let args: Vec<Value> = std::iter::once(Value::from(key)).chain(flat).collect();
        let _: i64 = raw.custom(fred::cmd!("HSET"), args).await.unwrap();
    };
    hset(keys.templates(), templates).await;
    hset(keys.template_numbers(), numbers).await;
    let _: i64 = raw.hset(Keys::meta(0), ("templates", i64::from(coupons))).await.unwrap();
    for n in 0..holders {
        let held: Vec<u8> = (0..coupons).flat_map(|of| coupon(n, of).to_bytes()).collect();
        hset(keys.held(), vec![(holder(n).into(), held.into())]).await;
    }
}

async fn shop_with_holders(holders: u32, coupons: u32) -> Shop {
    let shop = Shop::open().await;
    put_holders(&shop.raw, &shop.keys().await, holders, coupons).await;
    shop
}

#[tokio::test]
async fn reads_of_very_many_coupons_are_put_off_and_others_are_not() {
    let shop = shop_with_holders(HOLDERS, COUPONS).await;
    shop.charge("ann", 500).await;
    let meta = shop.meta().await;
    let head = wire::pack(&(meta.epoch, 0, "")).unwrap();
    let lists: Vec<Vec<u8>> = (0..HOLDERS)
        // The whole list must be scanned.
        .map(|n| wire::pack(&("held", holder(n), "used", 20, Blob(vec![]))).unwrap())
        .collect();
    let mut reads = vec![0xdc, 0, u8::try_from(HOLDERS).unwrap() + 1];
    reads.extend(lists.concat());
    reads.extend(wire::pack(&("balance", "ann")).unwrap());
    let reply = READ.call(&shop.raw, READ.keys(&shop.keys().await, 0), head, reads).await;
    let Ok(Reply::Decided(decided)) = reply else { panic!("{reply:?}") };
    let (balance, lists) = decided.verdicts.split_last().unwrap();
    let put_off = lists.iter().filter(|answer| READ.to_ask_again(answer).is_some()).count();
    assert!((1..lists.len()).contains(&put_off), "{put_off} of {} were put off", lists.len());
    assert_eq!(rmp_serde::from_slice::<String>(balance).unwrap(), "500");

    // Requests through the gate are not affected.
    let answers = join_all((0..HOLDERS).map(|n| {
        let (gate, holder) = (&shop.gate, user(&holder(n)));
        async move { gate.held_coupons(&holder, None, 20, None).await.unwrap().unwrap().value }
    }));
    for (n, listed) in (0..).zip(answers.await) {
        let listed: Vec<Uuid> = listed.iter().map(|coupon| coupon.coupon_id).collect();
        let newest: Vec<Uuid> =
            (COUPONS - 20..COUPONS).rev().map(|place| coupon(n, place).coupon_id).collect();
        assert_eq!(listed, newest);
    }
}

#[tokio::test]
async fn a_long_list_is_looked_through_in_several_calls() {
    let shop = shop_with_holders(1, 2_500).await;
    let holder = user(&holder(0));
    let list = |status, limit, after| shop.gate.held_coupons(&holder, status, limit, after);
    let used = list(Some(CouponStatus::Used), 10, None).await.unwrap().unwrap().value;
    assert_eq!(
        used.iter().map(|held| held.coupon_id).collect::<Vec<_>>(),
        [coupon(0, 0).coupon_id]
    );
    let all = list(None, 10_000, None).await.unwrap().unwrap().value;
    assert_eq!(all.len(), 2_500);
    let rest = list(None, 10_000, Some(all[1_200].coupon_id)).await.unwrap().unwrap().value;
    assert_eq!(rest, all[1_201..]);
    assert!(list(None, 10, Some(Uuid::from_u128(3))).await.unwrap().is_none());
}

#[tokio::test]
async fn who_holds_very_many_coupons_is_issued_more_in_calls_of_few() {
    let shop = shop_with_holders(HOLDERS, COUPONS).await;
    shop.put_template(open_template("new", 10_000)).await;
    let before = shop.meta().await.seq;
    let issued = join_all((0..2 * HOLDERS).map(|n| {
        let name = if n % 2 == 0 { holder(n / 2) } else { format!("light-{n}") };
        let shop = &shop;
        async move { shop.issue("new", &name).await.unwrap().serial }
    }));
    let serials: HashSet<u64> = issued.await.into_iter().collect();
    assert_eq!(serials, (1..=u64::from(2 * HOLDERS)).collect());
    let again = shop.issue("new", &holder(5)).await;
    assert!(matches!(again, Err(IssueRefusal::AlreadyIssued(_))), "{again:?}");

    let reader = LogReader::connect(&shop.servers.redis_url, 0).await.unwrap();
    let (mut light, mut most_heavy) = (vec![], 0);
    for entry in reader.after(shop.meta().await.epoch, before, 10_000).await.unwrap() {
        let Facts::CouponsIssued(issued) = entry.decode().unwrap().facts else {
            panic!("{entry:?}")
        };
        let heavy = issued.iter().filter(|fact| fact.user_id.starts_with("holder")).count();
        most_heavy = most_heavy.max(heavy);
        light.extend((heavy < issued.len()).then_some(entry.seq));
    }
    let most = HELD_WRITE_BYTES / (COUPON_BYTES * COUPONS as usize);
    assert!((1..=most).contains(&most_heavy), "{most_heavy} in one call");
    let (last, end) = (light.last().unwrap() - before, shop.meta().await.seq - before);
    assert!(last <= end / 2, "the others did not wait for them: {last} of {end} entries");
    let held =
        shop.gate.held_coupons(&user(&holder(0)), None, 1, None).await.unwrap().unwrap().value;
    assert_eq!(held[0].template.template_id, template("new"));
}

/// Latencies of other clients: median, 95th percentile and maximum, in milliseconds.
struct Latencies(Vec<Duration>);

impl std::fmt::Display for Latencies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut all = self.0.clone();
        all.sort_unstable();
        let at = |share: usize| all[(all.len() - 1) * share / 100].as_secs_f64() * 1_000.0;
        write!(
            f,
            "p50 {:.1}, p95 {:.1}, longest {:.1} ms ({} requests)",
            at(50),
            at(95),
            at(100),
            all.len()
        )
    }
}

/// While `HOLDERS` users repeat what `ask` says, another client sends `others`, one at a time.
async fn beside(
    instance: &Instance,
    ask: impl Fn(u32, u32) -> Request,
    others: impl Fn(u32) -> Request,
) -> Latencies {
    let ends = Instant::now() + Duration::from_secs(4);
    let asking = (0..HOLDERS).map(|holder| {
        let ask = &ask;
        async move {
            let mut n = 0;
            while Instant::now() < ends {
                instance.send(&ask(holder, n)).await;
                n += 1;
            }
        }
    });
    let watching = async {
        let (mut took, mut n) = (Vec::new(), 0);
        while Instant::now() < ends {
            let asked = Instant::now();
            instance.done(&others(n)).await;
            took.push(asked.elapsed());
            n += 1;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Latencies(took)
    };
    futures::join!(join_all(asking), watching).1
}

/// Script statistics of Redis since the last call: the mean duration, and the number of calls above
/// 10 ms with the longest one.
async fn calls(cluster: &Cluster) -> String {
    let info: String = cluster.raw.custom(fred::cmd!("INFO"), vec!["commandstats"]).await.unwrap();
    let line = info
        .lines()
        .find(|line| line.starts_with("cmdstat_evalsha:"))
        .unwrap_or_default()
        .to_owned();
    let mean = line
        .split("usec_per_call=")
        .nth(1)
        .and_then(|rest| rest.split(',').next())
        .unwrap_or("?")
        .to_owned();
    let slow: Vec<Value> =
        cluster.raw.custom(fred::cmd!("SLOWLOG"), vec!["GET", "-1"]).await.unwrap();
    let took: Vec<u64> = slow
        .into_iter()
        .filter_map(|entry| entry.into_array().get(2).and_then(Value::as_u64))
        .collect();
    let _: Value = cluster.raw.custom(fred::cmd!("SLOWLOG"), vec!["RESET"]).await.unwrap();
    let _: Value = cluster.raw.custom(fred::cmd!("CONFIG"), vec!["RESETSTAT"]).await.unwrap();
    let longest = took.iter().max().copied().unwrap_or(0);
    format!(
        "a call took {mean} µs on average, {} took more than 10 ms, the longest {longest} µs",
        took.len()
    )
}

async fn file_bytes(cluster: &Cluster) -> u64 {
    let info: String = cluster.raw.custom(fred::cmd!("INFO"), vec!["persistence"]).await.unwrap();
    let size = info.lines().find_map(|line| line.strip_prefix("aof_current_size:")).unwrap();
    size.trim().parse().unwrap()
}

/// CPU seconds of Redis' main thread, which other processes on the machine do not affect.
async fn redis_time(raw: &Client) -> f64 {
    let info: String = raw.custom(fred::cmd!("INFO"), vec!["cpu"]).await.unwrap();
    let of = |name: &str| -> f64 {
        info.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().parse().unwrap()
    };
    of("used_cpu_user_main_thread:") + of("used_cpu_sys_main_thread:")
}

/// The median of ten measurements of what one call costs Redis.
async fn one_call<F: Future<Output = Reply>>(shop: &Shop, what: &str, call: impl Fn(u32) -> F) {
    let mut took = Vec::new();
    for round in 0..10 {
        let before = redis_time(&shop.raw).await;
        assert!(matches!(call(round).await, Reply::Decided(_)));
        took.push((redis_time(&shop.raw).await - before) * 1_000.0);
        put_holders(&shop.raw, &shop.keys().await, 256, COUPONS).await;
    }
    took.sort_unstable_by(f64::total_cmp);
    println!("one call, {what}: {:.1} ms of Redis' time", took[5]);
}

/// Measures the cost of one call for Redis, independently of the machine's load.
#[tokio::test]
#[ignore = "measures: cargo test --test it -- heavy::calls_of_redis --ignored --nocapture"]
async fn calls_of_redis() {
    let shop = &shop_with_holders(256, COUPONS).await;
    shop.put_template(open_template("new", 1_000_000)).await;
    let list = |name: fn(u32) -> String| {
        move |_| async move {
            let meta = shop.meta().await;
            let mut reads = vec![0xdc, 0, 64];
            for n in 0..64 {
                reads.extend(wire::pack(&("held", name(n), "", 21, Blob(vec![]))).unwrap());
            }
            let head = wire::pack(&(meta.epoch, 0, "")).unwrap();
            READ.call(&shop.raw, READ.keys(&shop.keys().await, 0), head, reads).await.unwrap()
        }
    };
    one_call(shop, "64 lists of no coupons", list(|n| format!("light-{n}"))).await;
    one_call(shop, "64 lists of 1,000 coupons", list(holder)).await;
    let issue = |name: fn(u32, u32) -> String| {
        move |round| async move {
            let (meta, mut batch) = (shop.meta().await, Batch::with_capacity(0));
            for n in 0..256 {
                let body = ("new", name(round, n), Id::new());
                batch.add(4_000_000_000_000, None, &wire::pack(&body).unwrap()).unwrap();
            }
            let day = jiff::Timestamp::now().as_millisecond().max(meta.clock_ms).div_euclid(DAY_MS);
            let (count, values) = batch.shape();
            let head = wire::pack(&(meta.epoch, 0, "", day, 100_000, count, values)).unwrap();
            let keys = ISSUE_COUPON.keys(&shop.keys().await, day);
            ISSUE_COUPON.call(&shop.raw, keys, head, batch.into_bytes()).await.unwrap()
        }
    };
    one_call(
        shop,
        "256 coupons for who holds none",
        issue(|round, n| format!("light-{round}-{n}")),
    )
    .await;
    one_call(shop, "256 coupons for who holds 1,000", issue(|_, n| holder(n))).await;
}

/// Measures what other clients notice.
#[tokio::test]
#[ignore = "measures: cargo test --test it -- heavy::figures --ignored --nocapture"]
async fn figures() {
    let cluster = Cluster::servers().await;
    let instance = cluster.start_roles("api,reconciler").await;
    let keys = Keys::new(0, cluster.meta().await.epoch);
    put_holders(&cluster.raw, &keys, HOLDERS, COUPONS).await;
    instance.done(&Request::charge("ann", 1_000)).await;
    let slower_than = vec!["SET", "slowlog-log-slower-than", "10000"];
    let _: Value = cluster.raw.custom(fred::cmd!("CONFIG"), slower_than).await.unwrap();
    let wallet = |_| Request::get("/v1/users/ann/wallet");
    let list = |user: String| Request::get(format!("/v1/users/{user}/coupons?limit=20"));

    let light = beside(&instance, |n, _| list(format!("light-{n}")), wallet).await;
    println!("reads beside {HOLDERS} who list no coupons: {light}; {}", calls(&cluster).await);
    let heavy = beside(&instance, |n, _| list(holder(n)), wallet).await;
    println!("reads beside {HOLDERS} who list {COUPONS} each: {heavy}; {}", calls(&cluster).await);

    for n in 0..40 {
        instance.done(&Request::put_template(&format!("new-{n}"), 1_000_000)).await;
    }
    let issue = |name: fn(u32) -> String| {
        move |n: u32, round: u32| {
            Request::issue(&format!("new-{}", round % 40), &format!("{}{}", name(n), round / 40))
        }
    };
    let issue_to = |n: u32| Request::issue("new-0", &format!("somebody-{n}"));
    let light = beside(&instance, issue(|n| format!("light-{n}-")), issue_to).await;
    println!("coupons beside {HOLDERS} who hold none: {light}; {}", calls(&cluster).await);
    let before = file_bytes(&cluster).await;
    let issue_heavy =
        |n: u32, round: u32| Request::issue(&format!("new-{}", round % 40), &holder(n));
    let issue_to = |n: u32| Request::issue("new-1", &format!("somebody-{n}"));
    let heavy = beside(&instance, issue_heavy, issue_to).await;
    println!(
        "coupons beside {HOLDERS} who hold {COUPONS} each: {heavy}; {}; {} bytes of append-only file",
        calls(&cluster).await,
        file_bytes(&cluster).await - before
    );
    instance.stop().await;
}
