//! Searches of orders, and of the holders of coupons, in a full shop: what a page reads does not
//! depend on how far back it is, nor on how many orders there are.

use std::time::{Duration, Instant};

use rushgate::domain::{CouponStatus, OrderStatus, ProductId, TemplateId, UserId};
use rushgate::truth::{OrderSearch, Truth, pool_for_reads};
use sqlx::{Connection, PgConnection, PgPool};
use uuid::Uuid;

use crate::truth::{database, database_url, number};

/// With a million, the test takes a minute, and pages read the same.
const ORDERS: i64 = 200_000;
/// Coupons of orders before this one are used.
const USED_BEFORE: i64 = 180_000;
/// One order a second.
const FIRST_AT_MS: i64 = 1_767_225_600_000;
const SECOND_MS: i64 = 1_000;
const PAGE: usize = 100;
/// More than the plans that PostgreSQL makes for the first executions of a statement.
const EXECUTIONS: u64 = 8;

/// A product in nearly all orders, one in a few old ones; a template of every second order, one of
/// a few old ones; a user with every tenth order; every 100th order cancelled.
async fn fill(pool: &PgPool) {
    let last = ORDERS - 1;
    let statements = format!(
        "CREATE FUNCTION test_id(n bigint) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
            SELECT (lpad(to_hex(1767225600000 + n * 1000), 12, '0') || '70008000' || lpad(to_hex(n), 12, '0'))::uuid $$;
         CREATE FUNCTION test_at(n bigint) RETURNS timestamptz LANGUAGE sql IMMUTABLE AS $$
            SELECT to_timestamp(1767225600 + n) $$;
         INSERT INTO coupons (coupon_id, template_id, user_id, serial, issued_at, expires_at, order_id, used_at)
         SELECT test_id(n), CASE WHEN n < 1000 THEN 'rare' ELSE 'common' END, 'holder-' || n, n + 1, test_at(n),
            test_at(n) + interval '365 days', CASE WHEN n < {USED_BEFORE} THEN test_id(n) END, CASE WHEN n < {USED_BEFORE} THEN test_at(n) END
         FROM generate_series(0, {last}, 2) AS n;
         INSERT INTO orders (order_id, user_id, status, subtotal, discount, total, coupon_id, balance_after, ordered_at,
            cancelled_at)
         SELECT test_id(n), CASE WHEN n % 10 = 0 THEN 'regular' ELSE 'user-' || n END,
            CASE WHEN n % 100 = 0 THEN 'cancelled' ELSE 'paid' END, 100, 0, 100,
            CASE WHEN n % 2 = 0 THEN test_id(n) END, 0, test_at(n), CASE WHEN n % 100 = 0 THEN test_at(n) END
         FROM generate_series(0, {last}) AS n;
         INSERT INTO order_items (order_id, line_no, product_id, name, unit_price, quantity, amount)
         SELECT test_id(n), 0, CASE WHEN n < 1000 THEN 'rare' ELSE 'common' END, 'n', 100, 1, 100
         FROM generate_series(0, {last}) AS n;"
    );
    sqlx::raw_sql(&statements).execute(pool).await.unwrap();
    for table in ["orders", "order_items", "order_templates", "coupons"] {
        let mut session = pool.acquire().await.unwrap();
        sqlx::raw_sql(&format!("VACUUM (ANALYZE) {table}")).execute(&mut *session).await.unwrap();
    }
}

/// Rows and index entries that were read up to now, by sessions that have ended.
async fn read_so_far(url: &str) -> i64 {
    let mut session = PgConnection::connect(url).await.unwrap();
    let began = Instant::now();
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'rushgate'";
    while sqlx::query_scalar::<_, i64>(sessions).fetch_one(&mut session).await.unwrap() > 0 {
        assert!(began.elapsed().as_secs() < 40, "the reader's session does not end");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let sql = "SELECT ((SELECT sum(idx_tup_read) FROM pg_stat_user_indexes)
        + (SELECT sum(coalesce(seq_tup_read, 0)) FROM pg_stat_user_tables))::bigint";
    sqlx::query_scalar(sql).fetch_one(&mut session).await.unwrap()
}

fn id(n: i64) -> Uuid {
    let at = u128::from((FIRST_AT_MS + n * SECOND_MS).unsigned_abs());
    Uuid::from_u128(at << 80 | 0x7000_8000_u128 << 48 | u128::from(n.unsigned_abs()))
}

fn search(change: impl FnOnce(&mut OrderSearch)) -> OrderSearch {
    let mut search = OrderSearch::default();
    change(&mut search);
    search
}

struct Measured {
    /// Per execution.
    rows_read: u64,
    found: usize,
    took: Duration,
}

/// Reads a page repeatedly with one session, so that PostgreSQL may settle on a plan for all
/// parameters.
async fn measure(url: &str, read: impl AsyncFn(&Truth) -> usize) -> Measured {
    let before = read_so_far(url).await;
    let pool = pool_for_reads(url, 1, Duration::from_secs(20)).unwrap();
    let truth = Truth::new(pool.clone(), Duration::from_secs(20));
    let (mut found, mut took) = (0, Duration::MAX);
    for _ in 0..EXECUTIONS {
        let began = Instant::now();
        found = read(&truth).await;
        took = took.min(began.elapsed());
    }
    pool.close().await;
    let read = u64::try_from(read_so_far(url).await - before).unwrap();
    Measured { rows_read: read / EXECUTIONS, found, took }
}

#[tokio::test]
async fn a_page_of_a_search_costs_the_same_however_far_back_it_is() {
    let began = Instant::now();
    let pool = database().await;
    fill(&pool).await;
    println!("filled in {:?}", began.elapsed());
    let name: String =
        sqlx::query_scalar("SELECT current_database()").fetch_one(&pool).await.unwrap();
    let noted = number(&pool, "SELECT count(*) FROM order_templates").await;
    assert_eq!(noted, ORDERS / 2, "the trigger has noted every order with a coupon");
    pool.close().await;
    let url = database_url(&name).await;
    let user = |id: &str| UserId::parse(id).ok();
    let product = |id: &str| ProductId::parse(id).ok();
    let template = |id: &str| TemplateId::parse(id).ok();
    let at = |n: i64| Some(FIRST_AT_MS + n * SECOND_MS);
    let (paid, cancelled) = (Some(OrderStatus::Paid), Some(OrderStatus::Cancelled));
    // A page: its ids, its orders, and what is checked of each; its items.
    const OF_A_PAGE: u64 = 6 * PAGE as u64;
    // A time begins within two hours and a minute of ids.
    const OF_A_TIME: u64 = OF_A_PAGE + 3 * 7_260;
    // Few pass the filter, so the page examines its share.
    const OF_A_SHARE: u64 = OF_A_PAGE * 100;
    for (what, search, bound) in [
        ("all", search(|_| ()), OF_A_PAGE),
        ("user", search(|s| s.user_id = user("regular")), OF_A_PAGE),
        ("product", search(|s| s.product_id = product("common")), OF_A_PAGE),
        ("template", search(|s| s.template_id = template("common")), OF_A_PAGE),
        ("cancelled", search(|s| s.status = cancelled), OF_A_PAGE),
        ("paid", search(|s| s.status = paid), OF_A_PAGE),
        ("from", search(|s| s.from = at(5_000)), OF_A_PAGE),
        ("until", search(|s| s.until = at(ORDERS - 50_000)), OF_A_TIME),
        (
            "product, paid",
            search(|s| (s.product_id, s.status) = (product("common"), paid)),
            OF_A_PAGE,
        ),
        (
            "product, cancelled",
            search(|s| (s.product_id, s.status) = (product("common"), cancelled)),
            OF_A_SHARE,
        ),
        (
            "user, product",
            search(|s| (s.user_id, s.product_id) = (user("regular"), product("common"))),
            OF_A_PAGE,
        ),
        (
            "template, user",
            search(|s| (s.user_id, s.template_id) = (user("regular"), template("common"))),
            OF_A_PAGE,
        ),
        (
            "template, product",
            search(|s| (s.template_id, s.product_id) = (template("common"), product("common"))),
            OF_A_PAGE,
        ),
    ] {
        for after in [None, Some(id(ORDERS / 2)), Some(id(20_000))] {
            let page = measure(&url, async |truth| {
                truth.search_orders(&search, after, PAGE).await.unwrap().found.len()
            });
            let Measured { rows_read, found, took } = page.await;
            println!("{what}, after {after:?}: {rows_read} read, {took:?}");
            assert_eq!(found, PAGE, "{what}, after {after:?}");
            assert!(rows_read <= bound, "{what}, after {after:?}: {rows_read} read for a page");
        }
    }
    // The last page of what is rare, behind everything else.
    for (what, search) in [
        ("rare product", search(|s| s.product_id = product("rare"))),
        ("rare template", search(|s| s.template_id = template("rare"))),
        ("one user", search(|s| s.user_id = user("user-7"))),
        ("a window", search(|s| (s.from, s.until) = (at(100), at(200)))),
        (
            "rare product, common template",
            search(|s| (s.product_id, s.template_id) = (product("rare"), template("common"))),
        ),
    ] {
        let page = measure(&url, async |truth| {
            let page = truth.search_orders(&search, None, PAGE).await.unwrap();
            page.found.len()
        });
        let Measured { rows_read, found, took } = page.await;
        println!("{what}: {found} found, {rows_read} read, {took:?}");
        let expected = match what {
            "one user" => 1,
            "rare product, common template" => 0,
            _ => PAGE,
        };
        assert_eq!(found, expected, "{what}");
    }
    holders(&url).await;
}

/// The coupons of a template: pages by serial, and what few of them are.
async fn holders(url: &str) {
    let template = TemplateId::parse("common").unwrap();
    let now = FIRST_AT_MS;
    for (what, status, after, bound) in [
        ("all", None, 0, 2 * PAGE as u64),
        ("all, deep", None, USED_BEFORE, 2 * PAGE as u64),
        ("used", Some(CouponStatus::Used), ORDERS / 2, 3 * PAGE as u64),
        ("available", Some(CouponStatus::Available), USED_BEFORE, 3 * PAGE as u64),
    ] {
        let page = measure(url, async |truth| {
            truth.holders(&template, status, now, Some(after), PAGE).await.unwrap().found.len()
        });
        let Measured { rows_read, found, took } = page.await;
        println!("holders, {what}: {rows_read} read, {took:?}");
        assert_eq!(found, PAGE, "{what}");
        assert!(rows_read <= bound, "{what}: {rows_read} read for a page");
    }
    // Those that are available are behind all that are used.
    let pool = pool_for_reads(url, 1, Duration::from_secs(20)).unwrap();
    let truth = Truth::new(pool, Duration::from_secs(20));
    let (mut after, mut pages) = (None, 0);
    let first = loop {
        let began = Instant::now();
        let page = truth
            .holders(&template, Some(CouponStatus::Available), now, after, PAGE)
            .await
            .unwrap();
        assert!(
            began.elapsed() < Duration::from_secs(5),
            "a page examines for {:?}",
            began.elapsed()
        );
        pages += 1;
        match page.found.first() {
            Some(first) => break first.serial,
            None => after = Some(page.go_on_after.expect("there are more")),
        }
    };
    println!("{pages} pages to the first coupon that is available");
    assert_eq!(first, USED_BEFORE.unsigned_abs() + 1);
}
