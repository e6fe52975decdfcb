//! The log is read in portions of limited bytes, not only of limited entries: even if an entry has
//! many megabytes and the link is slow.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fred::prelude::*;
use rushgate::config::Servers;
use rushgate::config::bounds::APPLY_BYTES;
use rushgate::domain::wire::{self, Id};
use rushgate::gate::batch::{Batch, FlatLines};
use rushgate::gate::script::{CallError, PLACE_ORDER, Reply};
use rushgate::log::RawEntry;
use rushgate::log::reader::{LogReader, decided_after};
use rushgate::reconciler::{Reconciler, StepOutcome};
use rushgate::redis::keys::{DAY_MS, Keys};
use rushgate::redis::meta::Meta;
use rushgate_local_servers::{DataFolder, RedisOptions, RedisServer};

use crate::cluster::eventually;
use crate::faults::proxy::Proxy;
use crate::shop::*;
use crate::truth::execute;

const EPOCH: u64 = 3;

/// A Redis whose log has entries of these sizes (payload, traces).
async fn log_of(sizes: &[(usize, usize)]) -> (RedisServer, Client, Vec<RawEntry>) {
    let redis = RedisServer::start(RedisOptions::new(DataFolder::Scratch)).await.unwrap();
    let client = rushgate::redis::connect(&redis.url()).await.unwrap();
    let mut entries = Vec::new();
    for (seq, (payload, traces)) in (1..).zip(sizes) {
        let bytes =
            |count: usize| (0..count).map(|n| (n as u64 * seq % 251) as u8).collect::<Vec<_>>();
        let (payload, traces) = (bytes(*payload), bytes(*traces));
        let entry = RawEntry { epoch: EPOCH, seq, payload, tip: format!("tip {seq}"), traces };
        let mut fields: Vec<(&str, Bytes)> =
            vec![("p", entry.payload.clone().into()), ("t", entry.tip.clone().into())];
        if !entry.traces.is_empty() {
            fields.push(("x", entry.traces.clone().into()));
        }
        let key = Keys::new(0, EPOCH).log();
        let _: String =
            client.xadd(key, false, None::<()>, format!("{EPOCH}-{seq}"), fields).await.unwrap();
        entries.push(entry);
    }
    (redis, client, entries)
}

#[tokio::test]
async fn a_page_of_the_log_is_bounded_in_bytes() {
    let large = 5_000_000;
    let sizes = [
        (200_000, 20_000),
        (200_000, 20_000),
        (200_000, 0),
        (large, 300_000),
        (10, 0),
        (9, 1),
        (8, 0),
    ];
    let (redis, client, entries) = log_of(&sizes).await;
    let reader = LogReader::connect(&redis.url(), 0).await.unwrap();
    let page = async |seq, count, bytes| {
        let page = reader.page(EPOCH, seq, count, bytes).await.unwrap();
        (page.entries, page.more)
    };
    assert_eq!(page(0, 64, APPLY_BYTES).await, (entries[..2].to_vec(), true));
    assert_eq!(page(0, 1, APPLY_BYTES).await, (entries[..1].to_vec(), true));
    assert_eq!(page(2, 64, APPLY_BYTES).await, (entries[2..3].to_vec(), true));
    assert!(
        page(3, 64, APPLY_BYTES).await == (entries[3..4].to_vec(), true),
        "a large one comes alone"
    );
    assert_eq!(page(4, 64, 20).await, (entries[4..6].to_vec(), true));
    assert_eq!(page(4, 64, APPLY_BYTES).await, (entries[4..].to_vec(), false));
    assert_eq!(page(7, 64, APPLY_BYTES).await, (vec![], false));
    assert!(reader.after(EPOCH, 0, 100).await.unwrap() == entries, "all of them, page by page");
    assert!(reader.after(EPOCH, 1, 4).await.unwrap() == entries[1..5]);

    // Something that is not an entry ends the log.
    let key = Keys::new(0, EPOCH).log();
    let _: String = client
        .xadd(key.clone(), false, None::<()>, format!("{EPOCH}-8"), ("a", "b"))
        .await
        .unwrap();
    assert_eq!(page(4, 64, APPLY_BYTES).await, (entries[4..].to_vec(), false));
    assert_eq!(reader.page(EPOCH + 1, 0, 64, APPLY_BYTES).await.unwrap().entries, []);
    let _: () = client.set(key, "no log", None, None, false).await.unwrap();
    assert_eq!(page(0, 64, APPLY_BYTES).await, (vec![], false));
}

#[tokio::test]
async fn the_age_of_an_entry_is_told_by_its_beginning() {
    let mut shop = Shop::open().await;
    shop.charge("ann", 1).await;
    let (meta, reader) =
        (shop.meta().await, LogReader::connect(&shop.servers.redis_url, 0).await.unwrap());
    let entry = reader.after(meta.epoch, 0, 1).await.unwrap().remove(0);
    let told = async |seq| decided_after(&shop.raw, 0, meta.epoch, seq).await.unwrap();
    assert_eq!(told(0).await, Some(entry.decode().unwrap().decided_at));
    assert_eq!(told(1).await, None);
    shop.apply_all().await;
}

/// The link needs twice a command's timeout for one entry.
#[tokio::test]
async fn entries_of_many_megabytes_come_through_a_slow_link() {
    let large = 8_700_000;
    let (redis, _client, entries) = log_of(&[(large, 0), (large, 1_000), (100, 0)]).await;
    let proxy = Proxy::start(redis.port()).await;
    proxy.throttle(1_700_000);
    let reader = Arc::new(LogReader::connect(&proxy.url(), 0).await.unwrap());
    // Other requests on the connection are answered in time.
    let asking = Arc::clone(&reader);
    let asked = tokio::spawn(async move {
        loop {
            asking.meta().await.unwrap();
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    });
    for seq in [0, 1] {
        let page = reader.page(EPOCH, seq, 64, APPLY_BYTES).await.unwrap();
        assert_eq!(page.entries.len(), 1, "not more than one is in memory");
        assert!(page.entries[0] == entries[seq as usize] && page.more);
        reader.wait_after(EPOCH, seq + 1).await.unwrap();
    }
    let last = reader.page(EPOCH, 2, 64, APPLY_BYTES).await.unwrap();
    assert_eq!((last.entries, last.more), (entries[2..].to_vec(), false));
    assert!(!asked.is_finished(), "{:?}", asked.await);
    asked.abort();
}

/// Batches of 256 orders with 50 lines and the longest names, which versions before this limit
/// could write.
#[tokio::test]
async fn a_reconciler_behind_a_slow_link_applies_the_largest_entries() {
    const LINES: usize = 50;
    const ORDERS: usize = 256;
    let mut shop = Shop::open().await;
    let name = "긴".repeat(200);
    let wanted: Vec<String> = (0..LINES).map(|n| format!("product-{n}")).collect();
    for id in &wanted {
        let put = rushgate::gate::PutProduct {
            product_id: product(id),
            name: name.clone(),
            price: 100,
            status: rushgate::domain::ProductStatus::OnSale,
            stock: Some(1_000_000),
            rules: Default::default(),
        };
        shop.gate.put_product(put, soon()).await.unwrap().unwrap();
    }
    let wanted: Vec<(&str, u64)> = wanted.iter().map(|id| (id.as_str(), 1)).collect();
    let users: Vec<String> = (0..ORDERS).map(|n| format!("user-{n}")).collect();
    for user in &users {
        shop.charge(user, 100_000).await;
    }
    shop.apply_all().await;
    for _ in 0..2 {
        let meta = shop.meta().await;
        let mut batch = Batch::with_capacity(0);
        for user in &users {
            let lines = lines(&wanted);
            let lines = FlatLines(&lines);
            let body = (Id::new(), user, lines, None::<Id>, None::<u64>, None::<()>);
            batch.add(4_000_000_000_000, None, &wire::pack(&body).unwrap()).unwrap();
        }
        let day = jiff::Timestamp::now().as_millisecond().max(meta.clock_ms).div_euclid(DAY_MS);
        let (count, values) = batch.shape();
        let head =
            wire::pack(&(meta.epoch, meta.seq, &meta.tip, day, 100_000, count, values)).unwrap();
        let keys = PLACE_ORDER.keys(&Keys::new(0, meta.epoch), day);
        // On a busy machine it may take longer than the command timeout.
        let reply = PLACE_ORDER.call(&shop.raw, keys, head, batch.into_bytes()).await;
        assert!(matches!(reply, Ok(Reply::Decided(_)) | Err(CallError::Unknown(_))), "{reply:?}");
        eventually("the batch is decided", || async {
            // The last reply may still block the connection.
            Meta::read(&shop.raw, 0).await.is_ok_and(|now| now.seq == meta.seq + 1).then_some(())
        })
        .await;
    }
    let reader = LogReader::connect(&shop.servers.redis_url, 0).await.unwrap();
    let before = shop.meta().await.applied;
    let entry = reader.page(shop.meta().await.epoch, before, 64, APPLY_BYTES).await.unwrap();
    assert_eq!(entry.entries.len(), 1);
    println!("an entry of {} bytes", entry.entries[0].payload.len());
    assert!(entry.entries[0].payload.len() > 7_500_000);

    let proxy = Proxy::start(shop.redis_port()).await;
    proxy.throttle(2_500_000);
    let servers = Servers { redis_url: proxy.url(), ..shop.servers.clone() };
    let mut behind = Reconciler::connect(&servers, 0).await.unwrap();
    let (mut applied, until) = (0, Instant::now() + Duration::from_secs(90));
    while applied < 2 {
        assert!(Instant::now() < until, "no progress");
        match behind.step().await.unwrap() {
            StepOutcome::Applied(entries) => applied += entries,
            other => panic!("{other:?}"),
        }
    }
    shop.assert_audit_clean().await;
}

/// Each row of the ledger takes 20 ms, and a statement may take 600 ms.
const SLOW_LEDGER: &str = "
    CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.02); RETURN NEW; END';
    CREATE TRIGGER slow BEFORE INSERT ON wallet_entries FOR EACH ROW EXECUTE FUNCTION slow();
    DO $$ BEGIN
        EXECUTE format('ALTER DATABASE %I SET statement_timeout = 600', current_database());
    END $$;";

#[tokio::test]
async fn what_postgresql_cannot_take_in_time_comes_in_smaller_transactions() {
    let shop = Shop::open().await;
    for _ in 0..64 {
        shop.charge("ann", 1).await;
    }
    execute(&shop.pool, SLOW_LEDGER).await;
    let mut slow = Reconciler::connect(&shop.servers, 0).await.unwrap();
    let (mut applied, mut failed) = (0, 0);
    while applied < 64 {
        match slow.step().await {
            Ok(StepOutcome::Applied(entries)) => applied += entries,
            Ok(other) => panic!("{other:?}"),
            Err(_) => failed += 1,
        }
        assert!(failed < 20, "no progress: {applied} applied");
    }
    assert!(failed > 0, "it was in time");
    assert_eq!(shop.meta().await.applied, 64);
}

#[tokio::test]
async fn a_rebuild_drains_in_smaller_transactions_where_postgresql_is_slow() {
    let shop = Shop::open().await;
    for _ in 0..64 {
        shop.charge("ann", 1).await;
    }
    execute(&shop.pool, SLOW_LEDGER).await;
    let mut slow = Reconciler::connect(&shop.servers, 0).await.unwrap();
    assert!(matches!(slow.rebuild_now().await.unwrap(), StepOutcome::Rebuilt(_)));
    assert_eq!(shop.balance("ann").await, Some(64));
    shop.assert_audit_clean().await;
}
