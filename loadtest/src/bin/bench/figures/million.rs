//! Large shops, created in PostgreSQL by SQL such that the audit is clean. Measures how long a
//! rebuild takes, how many bytes an element needs in Redis, and whether issuing is as fast as in an
//! empty shop.

use std::time::{Duration, Instant};

use rushgate_loadtest::redis::Redis;
use rushgate_loadtest::shop::Shop;
use rushgate_loadtest::{Outcome, say};

use super::{Figure, Measured, Target};
use crate::harness::{Harness, SETTLE_LIMIT};
use crate::rows::{Row, parts};
use crate::wrk::{Gaps, Looking, Plan};

const MILLION: i64 = 1_000_000;
const BIG: i64 = 5 * MILLION;

pub async fn measure(harness: &mut Harness, big_shop: bool) -> Outcome<Vec<Measured>> {
    let shop = harness.servers.shop("million").await?;
    shop.run(&harness.rushgate, &["migrate"])?;
    let mut found = vec![];
    let (_, empty) = rebuild(harness, &shop).await?;
    fill(&shop, include_str!("sql/wallets.sql"), 1, MILLION).await?;
    let (_, wallets) = rebuild(harness, &shop).await?;
    fill(&shop, include_str!("sql/coupons.sql"), 1, MILLION).await?;
    let (mut took, mut all) = (vec![], 0);
    for _ in 0..harness.rounds {
        let (secs, used) = rebuild(harness, &shop).await?;
        say(format_args!("rebuild: {secs:.2} s, Redis has {} MiB", used / 1024 / 1024));
        took.push(secs);
        all = used;
    }
    found.push(Measured::new(Figure::Rebuild, took, "s", Target::AtMost(10.0)));
    for (what, bytes, most) in
        [("wallet", wallets - empty, 110.0), ("held coupon", all - wallets, 200.0)]
    {
        let each = bytes as f64 / MILLION as f64;
        let mut measured = Measured::new(Figure::Bytes, vec![each], "bytes", Target::AtMost(most));
        measured.what = format!("Redis bytes per {what} (log trimmed)");
        found.push(measured);
    }
    if big_shop {
        fill(&shop, include_str!("sql/wallets.sql"), MILLION + 1, BIG).await?;
        found.push(against_an_empty_shop(harness, &shop).await?);
    }
    let begin = Instant::now();
    harness.audits.push(shop.audit(&harness.rushgate)?);
    say(format_args!(
        "audit of the large shop: clean, after {:.1} s",
        begin.elapsed().as_secs_f64()
    ));
    shop.close().await;
    Ok(found)
}

async fn fill(shop: &Shop, sql: &'static str, from: i64, to: i64) -> Outcome<()> {
    let begin = Instant::now();
    for statement in sql.split(';').map(str::trim).filter(|statement| !statement.is_empty()) {
        let mut query = sqlx::query(statement);
        // The statements that create the products and the template take no parameters.
        if statement.contains("$1") {
            query = query.bind(from).bind(to);
        }
        query.execute(&shop.pool).await?;
    }
    say(format_args!("filled {from} to {to} in {:.0} s", begin.elapsed().as_secs_f64()));
    Ok(())
}

/// Starts an instance on an empty Redis. Returns the seconds until it is ready, and the memory that
/// Redis then uses.
async fn rebuild(harness: &Harness, shop: &Shop) -> Outcome<(f64, u64)> {
    let mut redis = Redis::connect(shop.redis.port())?;
    redis.flush()?;
    let begin = Instant::now();
    let instance = shop.serve(&harness.rushgate, &[])?;
    let took = begin.elapsed().as_secs_f64();
    shop.settle(SETTLE_LIMIT).await?;
    instance.stop()?;
    let used = redis.info()?.get("used_memory").copied().ok_or("Redis does not say used_memory")?;
    Ok((took, used))
}

async fn against_an_empty_shop(harness: &mut Harness, big: &Shop) -> Outcome<Measured> {
    let small = harness.servers.shop("small").await?;
    Redis::connect(big.redis.port())?.flush()?;
    let instances = [small.serve(&harness.rushgate, &[])?, big.serve(&harness.rushgate, &[])?];
    instances[0].put_template("rush", 1_000_000_000)?;
    let (mut ratios, mut from) = (vec![], 0);
    for _ in 0..harness.rounds {
        let mut rates = vec![];
        for (shop, instance) in [&small, big].into_iter().zip(&instances) {
            from += 100_000_000;
            let plan = Plan { parts: parts(Row::Issue)?, gaps: Gaps::New { from } };
            small.settle(SETTLE_LIMIT).await?;
            big.settle(SETTLE_LIMIT).await?;
            rates.push(issued_per_s(harness, shop, instance.api, &plan).await?);
        }
        say(format_args!("empty shop {:.0}/s, large shop {:.0}/s", rates[0], rates[1]));
        ratios.push(rates[1] / rates[0]);
    }
    for (instance, shop) in instances.into_iter().zip([&small, big]) {
        shop.settle(SETTLE_LIMIT).await?;
        instance.stop()?;
    }
    harness.audits.push(small.audit(&harness.rushgate)?);
    small.close().await;
    Ok(Measured::new(Figure::BigShop, ratios, "of it", Target::AtLeast(0.9)))
}

async fn issued_per_s(
    harness: &Harness,
    shop: &Shop,
    api: std::net::SocketAddr,
    plan: &Plan,
) -> Outcome<f64> {
    let issued = async || -> Outcome<i64> {
        let sql = "SELECT issued FROM coupon_templates WHERE template_id = 'rush'";
        Ok(sqlx::query_scalar::<_, i64>(sql).fetch_optional(&shop.pool).await?.unwrap_or(0))
    };
    let before = issued().await?;
    let driven = harness.wrk.drive(api, plan, harness.length, Looking::At)?;
    shop.settle(SETTLE_LIMIT).await?;
    let grown = u64::try_from(issued().await? - before)?;
    let good = driven.requests - driven.refused;
    if driven.refused > 0 || !(good..=good + harness.wrk.connections as u64).contains(&grown) {
        return Err(format!("{driven:?}, but PostgreSQL gained {grown}").into());
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    Ok(driven.per_s())
}
