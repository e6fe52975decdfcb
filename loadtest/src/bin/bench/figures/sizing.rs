//! Bytes that an order with an idempotency key needs in Redis' memory and append-only file and in
//! PostgreSQL's tables and write-ahead log, and how long the log bridges an outage of PostgreSQL.
//! docs/operations.md uses these figures for sizing.

use std::time::{Duration, Instant};

use rushgate_loadtest::http::{Drive, Pace};
use rushgate_loadtest::redis::Redis;
use rushgate_loadtest::{Outcome, say};

use super::{Figure, Measured, Target};
use crate::harness::{Harness, SETTLE_LIMIT};
use crate::rows::Row;
use crate::wrk::{Gaps, Looking};

/// The order rate during the outage, as in the example in docs/operations.md.
const PER_S: f64 = 5_000.0;
const CONNECTIONS: usize = 1_024;
/// The default of RUSHGATE_LOG_LIMIT, in entries.
const LOG_LIMIT: f64 = 100_000.0;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Sizes in bytes at one moment.
struct Sizes {
    orders: i64,
    wal: i64,
    tables: i64,
    records: i64,
    aof: u64,
    records_in_redis: u64,
}

pub async fn measure(harness: &mut Harness) -> Outcome<Vec<Measured>> {
    harness.prepare(&[Row::Order1Keys])?;
    harness.shop.settle(SETTLE_LIMIT).await?;
    let mut redis = Redis::connect(harness.shop.redis.port())?;
    // A rewrite would shrink the file during the measurement.
    redis.set_config("auto-aof-rewrite-percentage", "0")?;
    let before = sizes(harness, &mut redis).await?;
    let plan = harness.plan(Row::Order1Keys, harness.length)?;
    harness.wrk.drive(harness.instance()?.api, &plan, harness.length, Looking::At)?;
    harness.shop.settle(SETTLE_LIMIT).await?;
    let after = sizes(harness, &mut redis).await?;
    let mut found = per_order(&before, &after)?;
    found.extend(outage(harness, &mut redis).await?);
    found.push(loading(harness, after.aof).await?);
    found.iter().for_each(say);
    Ok(found)
}

fn figure(what: &str, value: f64, unit: &'static str) -> Measured {
    let mut measured = Measured::new(Figure::Sizing, vec![value], unit, Target::None);
    measured.what = what.to_owned();
    measured
}

async fn sizes(harness: &Harness, redis: &mut Redis) -> Outcome<Sizes> {
    let today = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs()
        / DAY.as_secs();
    let epoch = redis.log()?.epoch;
    Ok(Sizes {
        orders: harness.number(Row::Order1Keys.truth()).await?,
        wal: harness.number("SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint").await?,
        tables: harness
            .number(
                "SELECT (pg_total_relation_size('orders') + pg_total_relation_size('order_items')
                       + pg_total_relation_size('wallet_entries'))::bigint",
            )
            .await?,
        records: harness.number("SELECT pg_total_relation_size('idempotency_records')").await?,
        aof: *redis.info()?.get("aof_current_size").ok_or("Redis does not say aof_current_size")?,
        records_in_redis: redis
            .bytes_of(&format!("rg:{{0}}:{epoch}:idem:{today}"))
            .unwrap_or_default(),
    })
}

fn per_order(before: &Sizes, after: &Sizes) -> Outcome<Vec<Measured>> {
    let orders = after.orders - before.orders;
    if orders < 1_000 {
        return Err(format!("{orders} orders are too few for a measurement").into());
    }
    let each = |before: i64, after: i64| (after - before) as f64 / orders as f64;
    let bytes = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    let grown = [
        (
            "PostgreSQL: an order of one line, its payment and its indexes",
            before.tables,
            after.tables,
        ),
        ("PostgreSQL: its idempotency record, for one to two days", before.records, after.records),
        ("PostgreSQL: write-ahead log per order", before.wal, after.wal),
        (
            "Redis: append-only file per order, before a rewrite",
            bytes(before.aof),
            bytes(after.aof),
        ),
        (
            "Redis: memory of its idempotency record, for one to two days",
            bytes(before.records_in_redis),
            bytes(after.records_in_redis),
        ),
    ];
    Ok(grown.map(|(what, before, after)| figure(what, each(before, after), "bytes")).into())
}

/// Sends orders at a steady rate while no reconciler applies the log.
async fn outage(harness: &mut Harness, redis: &mut Redis) -> Outcome<[Measured; 2]> {
    let plan = harness.plan(Row::Order1Keys, harness.length)?;
    let Gaps::Lines { lines, first } = plan.gaps else { return Err("keys come in lines".into()) };
    harness.exchange(&[("RUSHGATE_ROLES", "api")])?;
    let before = redis.log()?;
    let log = format!("rg:{{0}}:{}:log", before.epoch);
    let bytes = redis.bytes_of(&log)?;
    let count = ((PER_S * harness.length.as_secs_f64()) as u64).min(lines.len() as u64);
    let pace = Pace::PerSecond(PER_S);
    let drive = Drive { address: harness.instance()?.api, connections: CONNECTIONS, pace, count };
    let write = |index: u64, out: &mut Vec<u8>| {
        if let Some(line) = usize::try_from(index).ok().and_then(|index| lines.get(index)) {
            let (key, user) = line.split_at(first);
            for part in [&plan.parts[0], key, &plan.parts[1], user, &plan.parts[2]] {
                out.extend_from_slice(part.as_bytes());
            }
        }
    };
    let (began, mut orders) = (Instant::now(), 0_u64);
    drive.run(write, |answer| {
        orders += u64::from(answer.status == 201);
        Ok(())
    })?;
    let (took, after) = (began.elapsed().as_secs_f64(), redis.log()?);
    let each = (redis.bytes_of(&log)? - bytes) as f64 / orders.max(1) as f64;
    let bridged = LOG_LIMIT / ((after.seq - before.seq) as f64 / took);
    harness.exchange(&[])?;
    harness.shop.settle(SETTLE_LIMIT).await?;
    let note = format!("{orders} orders in {took:.1} s, {} entries", after.seq - before.seq);
    Ok([
        figure("Redis: memory of the log per order that PostgreSQL does not have", each, "bytes"),
        figure(
            "outage that RUSHGATE_LOG_LIMIT=100000 bridges at 5,000 orders a second",
            bridged,
            "s",
        )
        .note(note),
    ])
}

/// Measures how long Redis takes to start and load its append-only file.
async fn loading(harness: &mut Harness, file: u64) -> Outcome<Measured> {
    let began = Instant::now();
    harness.shop.redis.restart().await?;
    let took = began.elapsed().as_secs_f64();
    let gib = file as f64 / f64::from(1 << 30);
    let note =
        format!("{took:.2} s for {:.0} MiB, including the start of the process", gib * 1024.0);
    harness.exchange(&[])?;
    harness.shop.settle(SETTLE_LIMIT).await?;
    Ok(figure("Redis: start after a crash, per GiB of append-only file", took / gib, "s")
        .note(note))
}
