//! The main way of a request through the gate and the log to PostgreSQL, on real servers.

use std::time::Duration;

use rushgate::gate::*;
use rushgate::reconciler::StepOutcome;
use rushgate::truth::Truth;
use sqlx::Row;
use uuid::Uuid;

use crate::shop::*;
use crate::truth::{empty_database, migrate_all};

#[tokio::test]
async fn an_order_goes_from_the_gate_to_the_truth() {
    let mut shop = Shop::open().await;
    shop.put_product("mug", 15_000, 10).await;
    shop.put_template(open_template("welcome", 3)).await;
    assert_eq!(shop.charge("ann", 100_000).await.balance_after, 100_000);
    let coupon = shop.issue("welcome", "ann").await.unwrap();
    assert_eq!((coupon.serial, coupon.remaining), (1, 2));
    let again = shop.issue("welcome", "ann").await;
    assert_eq!(again, Err(IssueRefusal::AlreadyIssued(coupon.coupon_id)));

    let placed = shop.place(order("ann", &[("mug", 2)], Some(coupon.coupon_id.0))).await.unwrap();
    assert_eq!((placed.subtotal, placed.discount, placed.total), (30_000, 1_000, 29_000));
    assert_eq!(placed.balance_after, 71_000);
    assert_eq!(shop.balance("ann").await, Some(71_000));
    assert_eq!(shop.stock("mug").await, 8);

    assert!(matches!(shop.reconciler.step().await.unwrap(), StepOutcome::Applied(5)));
    shop.apply_all().await;
    let row = sqlx::query("SELECT status, total, balance_after FROM orders")
        .fetch_one(&shop.pool)
        .await
        .unwrap();
    assert_eq!(row.get::<String, _>(0), "paid");
    assert_eq!((row.get::<i64, _>(1), row.get::<i64, _>(2)), (29_000, 71_000));
    shop.assert_audit_clean().await;

    let cancelled = shop.cancel(&placed).await.unwrap();
    assert!(cancelled.coupon_returned);
    assert_eq!(cancelled.balance_after, 100_000);
    assert_eq!(shop.cancel(&placed).await, Err(CancelRefusal::AlreadyCancelled));
    assert_eq!(shop.stock("mug").await, 10);
    shop.apply_all().await;
    shop.assert_audit_clean().await;
    let events: Vec<String> = sqlx::query_scalar("SELECT payload FROM outbox ORDER BY outbox_id")
        .fetch_all(&shop.pool)
        .await
        .unwrap();
    let events: Vec<serde_json::Value> =
        events.iter().map(|e| serde_json::from_str(e).unwrap()).collect();
    assert_eq!(events[0]["type"], "rushgate.order.completed.v1");
    assert_eq!(events[1]["type"], "rushgate.order.cancelled.v1");
    assert_eq!(events[1]["data"]["status"], "cancelled");
    assert_eq!(events[1]["data"]["balance"], 100_000);
    assert_eq!(events[1]["data"]["items"], events[0]["data"]["items"]);
}

#[tokio::test]
async fn an_order_is_never_shown_without_its_items() {
    let mut shop = Shop::open().await;
    shop.put_product("mug", 1_000, 10).await;
    shop.charge("ann", 1_000).await;
    let id = shop.place(order("ann", &[("mug", 1)], None)).await.unwrap().order_id.0;
    shop.apply_all().await;
    let truth = Truth::new(shop.pool.clone(), Duration::from_secs(5));
    assert_eq!(truth.order(id).await.unwrap().unwrap().items.len(), 1);
    // As if a backup were restored between the statement that reads the order and the one that
    // reads its items.
    sqlx::query("DELETE FROM order_items").execute(&shop.pool).await.unwrap();
    assert!(truth.order(id).await.is_err());
    assert!(truth.orders_of(&user("ann"), None, 10).await.is_err());
}

#[tokio::test]
async fn a_truth_that_went_back_since_it_was_waited_for_is_found_out() {
    let mut shop = Shop::open().await;
    shop.charge("ann", 1_000).await;
    shop.charge("ann", 1_000).await;
    shop.apply_all().await;
    let caught_up = shop.gate.catch_up(soon()).await.unwrap();
    let truth = Truth::new(shop.pool.clone(), Duration::from_secs(5));
    truth.has_reached(caught_up.positions()).await.unwrap();
    for back in ["UPDATE cell_cursors SET seq = seq - 1", "DELETE FROM cell_cursors"] {
        sqlx::query(back).execute(&shop.pool).await.unwrap();
        assert!(truth.has_reached(caught_up.positions()).await.is_err(), "{back}");
    }
}

/// As many orders and entries of one user as a shop's own account may have.
const MANY: &str = "
    INSERT INTO orders (order_id, user_id, status, subtotal, discount, total, balance_after, ordered_at)
    SELECT format('00000000-0000-7000-9000-%s', lpad(n::text, 12, '0'))::uuid, 'ann', 'paid', 100, 0, 100, 0, now()
    FROM generate_series(1, 5000) AS n
    UNION ALL SELECT format('00000000-0000-7000-8000-%s', lpad(n::text, 12, '0'))::uuid, 'user-' || n, 'paid', 100, 0, 100,
        0, now()
    FROM generate_series(1, 20000) AS n;
    INSERT INTO order_items SELECT order_id, 1, 'mug', 'Mug', 100, 1, 100 FROM orders WHERE user_id = 'ann';
    INSERT INTO wallet_entries (user_id, kind, amount, balance_after, ref_id, at)
    SELECT 'ann', 'payment', -100, 0, order_id, now() FROM orders WHERE user_id = 'ann' ORDER BY order_id;
    ANALYZE orders, wallet_entries";

#[tokio::test]
async fn a_page_far_back_is_read_from_its_place_on() {
    let url = empty_database().await;
    migrate_all(&url).await;
    // A single session, whose statements get generic plans from the sixth execution on.
    let pool = rushgate::truth::pool_for_reads(&url, 1, Duration::from_secs(30)).unwrap();
    sqlx::raw_sql(MANY).execute(&pool).await.unwrap();
    let truth = Truth::new(pool.clone(), Duration::from_secs(30));
    let ann = rushgate::domain::UserId::parse("ann").unwrap();
    let read = async |index: &str| -> i64 {
        sqlx::raw_sql("SELECT pg_stat_force_next_flush()").execute(&pool).await.unwrap();
        let sql = "SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = $1";
        sqlx::query_scalar(sql).bind(index).fetch_one(&pool).await.unwrap()
    };
    let before = (read("orders_by_user").await, read("wallet_entries_pkey").await);
    let last: Uuid = "00000000-0000-7000-9000-000000000021".parse().unwrap();
    for _ in 0..10 {
        let orders = truth.orders_of(&ann, Some(last), 10).await.unwrap();
        assert_eq!(orders[0].order_id.to_string(), "00000000-0000-7000-9000-000000000020");
        let entries = truth.wallet_entries(&ann, Some(21), 10).await.unwrap();
        assert_eq!((entries.len(), entries[0].entry_id), (10, 20));
    }
    let after = (read("orders_by_user").await, read("wallet_entries_pkey").await);
    let (orders, entries) = (after.0 - before.0, after.1 - before.1);
    assert!((100..1_000).contains(&orders), "{orders} orders were read for 10 pages of 10");
    assert!((100..1_000).contains(&entries), "{entries} entries were read for 10 pages of 10");
    assert_eq!(truth.orders_of(&ann, None, 1).await.unwrap().len(), 1, "the first page");
    assert_eq!(
        truth.wallet_entries(&ann, None, 1).await.unwrap()[0].entry_id,
        5_000,
        "the first page"
    );
}

#[tokio::test]
async fn plans_that_were_made_for_an_empty_shop_do_for_a_full_one() {
    let url = empty_database().await;
    let pool = rushgate::truth::pool_for_reads(&url, 1, Duration::from_secs(5)).unwrap();
    migrate_all(&url).await;
    sqlx::raw_sql("ANALYZE orders").execute(&pool).await.unwrap();
    let truth = Truth::new(pool.clone(), Duration::from_secs(5));
    let ann = rushgate::domain::UserId::parse("ann").unwrap();
    // PostgreSQL makes a generic plan at a statement's sixth execution, and discards it when the
    // table is analysed.
    for _ in 0..8 {
        assert_eq!(truth.order(Uuid::now_v7()).await.unwrap(), None);
        assert_eq!(truth.orders_of(&ann, None, 10).await.unwrap(), []);
    }
    let many = "INSERT INTO orders (order_id, user_id, status, subtotal, discount, total, balance_after, ordered_at)
        SELECT gen_random_uuid(), 'user-' || n, 'paid', 100, 0, 100, 0, now() FROM generate_series(1, 5000) AS n";
    sqlx::raw_sql(many).execute(&pool).await.unwrap();
    assert_eq!(truth.order(Uuid::now_v7()).await.unwrap(), None);
    assert_eq!(truth.orders_of(&ann, None, 10).await.unwrap(), []);
    sqlx::raw_sql("SELECT pg_stat_force_next_flush()").execute(&pool).await.unwrap();
    let read = "SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = 'orders'";
    let one_by_one: i64 = sqlx::query_scalar(read).fetch_one(&pool).await.unwrap();
    assert!(one_by_one < 5_000, "{one_by_one} orders were read one by one");
    // A one-row table is still scanned, at an estimated cost for which PostgreSQL would compile the
    // plan, which takes 150 ms or more.
    let jit: String = sqlx::query_scalar("SHOW jit").fetch_one(&pool).await.unwrap();
    assert_eq!(jit, "off");
}
