//! The popular lists on a real PostgreSQL, with a clock that the tests set.

use std::time::Instant;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use rushgate::scheduler::{Scheduler, Tick, refresh_now};
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::truth::{database, number};

const LISTS: &str = "SELECT count(*) FROM popular_refreshes";

type Ready = fn(Instant) -> std::future::Ready<Result<(), String>>;

const CAUGHT_UP: Ready = |_| std::future::ready(Ok(()));
const BEHIND: Ready = |_| std::future::ready(Err(String::from("behind")));

fn seoul() -> TimeZone {
    TimeZone::get("Asia/Seoul").unwrap()
}

fn scheduler(pool: &PgPool, caught_up: Ready) -> Scheduler<Ready> {
    Scheduler::new(pool.clone(), seoul(), caught_up)
}

/// A time of day in Seoul in March 2026.
fn at(day: u32, time: &str) -> i64 {
    format!("2026-03-{day:02}T{time}+09:00").parse::<Timestamp>().unwrap().as_millisecond()
}

async fn order(pool: &PgPool, at_ms: i64, status: &str, items: &[(&str, i64)]) {
    let id = Uuid::now_v7();
    sqlx::query(
        "INSERT INTO orders (order_id, user_id, status, subtotal, discount, total, balance_after, ordered_at, cancelled_at)
         SELECT $1, 'u', $2, 100, 0, 100, 0, t, CASE $2 WHEN 'cancelled' THEN t END
         FROM to_timestamp($3::double precision / 1000) t",
    )
    .bind(id)
    .bind(status)
    .bind(at_ms)
    .execute(pool)
    .await
    .unwrap();
    for (line, (product, quantity)) in items.iter().enumerate() {
        sqlx::query("INSERT INTO order_items VALUES ($1, $2, $3, $3, 100, $4, 100 * $4)")
            .bind(id)
            .bind(line as i16)
            .bind(product)
            .bind(quantity)
            .execute(pool)
            .await
            .unwrap();
    }
}

/// The newest list: products and pieces sold, by rank.
async fn list(pool: &PgPool) -> Vec<(String, i64)> {
    sqlx::query_as(
        "SELECT product_id, sold FROM popular_products
         WHERE refresh_id = (SELECT max(refresh_id) FROM popular_refreshes) ORDER BY rank",
    )
    .fetch_all(pool)
    .await
    .unwrap()
}

fn ranked(list: &[(&str, i64)]) -> Vec<(String, i64)> {
    list.iter().map(|(product, sold)| ((*product).to_owned(), *sold)).collect()
}

#[tokio::test]
async fn the_first_list_reaches_up_to_now_and_then_each_midnight_has_one() {
    let pool = database().await;
    order(&pool, at(10, "08:00:00"), "paid", &[("tea", 2)]).await;
    let scheduler = scheduler(&pool, CAUGHT_UP);
    assert_eq!(scheduler.tick(at(10, "09:00:00")).await.unwrap(), Tick::First);
    assert_eq!(list(&pool).await, ranked(&[("tea", 2)]));
    assert_eq!(scheduler.tick(at(10, "09:01:00")).await.unwrap(), Tick::NothingDue);
    assert_eq!(scheduler.tick(at(10, "23:59:59")).await.unwrap(), Tick::NothingDue);
    let midnight = scheduler.tick(at(11, "00:00:02")).await.unwrap();
    assert_eq!(midnight, Tick::Midnight("2026-03-11".parse().unwrap()));
    assert_eq!(scheduler.tick(at(11, "00:01:00")).await.unwrap(), Tick::NothingDue);
    let window: (i64, i64) = sqlx::query_as(
        "SELECT (extract(epoch FROM window_from) * 1000)::bigint, (extract(epoch FROM window_to) * 1000)::bigint
         FROM popular_refreshes WHERE list_day = '2026-03-11'",
    )
    .fetch_one(&pool)
    .await
    .unwrap();
    assert_eq!(window, (at(8, "00:00:00"), at(11, "00:00:00")));
}

#[tokio::test]
async fn the_five_most_sold_of_three_days_without_cancelled_orders() {
    let pool = database().await;
    refresh_now(&pool, &seoul(), at(10, "12:00:00")).await.unwrap();
    assert_eq!(list(&pool).await, vec![]);
    let last_moment = at(11, "00:00:00") - 1;
    // Equal pieces, so sorted by id.
    order(&pool, at(8, "00:00:00"), "paid", &[("b", 3), ("a", 3)]).await;
    order(&pool, last_moment, "paid", &[("c", 9), ("a", 1), ("d", 2), ("e", 1), ("f", 1)]).await;
    order(&pool, at(8, "00:00:00") - 1, "paid", &[("old", 99)]).await;
    order(&pool, at(11, "00:00:00"), "paid", &[("new", 99)]).await;
    order(&pool, at(9, "12:00:00"), "cancelled", &[("f", 99)]).await;
    scheduler(&pool, CAUGHT_UP).tick(at(11, "00:00:05")).await.unwrap();
    assert_eq!(list(&pool).await, ranked(&[("c", 9), ("a", 4), ("b", 3), ("d", 2), ("e", 1)]));

    refresh_now(&pool, &seoul(), at(11, "00:00:01")).await.unwrap();
    assert_eq!(list(&pool).await[0], ("new".to_owned(), 99));
}

#[tokio::test]
async fn missed_days_are_made_up_for_with_the_newest_midnight() {
    let pool = database().await;
    let scheduler = scheduler(&pool, CAUGHT_UP);
    scheduler.tick(at(10, "09:00:00")).await.unwrap();
    order(&pool, at(13, "10:00:00"), "paid", &[("tea", 1)]).await;
    let made = scheduler.tick(at(14, "15:30:00")).await.unwrap();
    assert_eq!(made, Tick::Midnight("2026-03-14".parse().unwrap()));
    assert_eq!(list(&pool).await, ranked(&[("tea", 1)]));
    assert_eq!(number(&pool, LISTS).await, 2);
}

#[tokio::test]
async fn it_waits_for_postgresql_but_not_for_ever() {
    let pool = database().await;
    let behind = scheduler(&pool, BEHIND);
    // A first list is better than none.
    assert_eq!(behind.tick(at(10, "09:00:00")).await.unwrap(), Tick::First);
    assert_eq!(behind.tick(at(11, "00:00:02")).await.unwrap(), Tick::Waiting("behind".into()));
    assert_eq!(number(&pool, LISTS).await, 1);
    assert!(matches!(behind.tick(at(11, "00:45:00")).await.unwrap(), Tick::Midnight(_)));
}

#[tokio::test]
async fn however_many_instances_tick_there_is_one_list() {
    let pool = database().await;
    for now in [at(10, "09:00:00"), at(11, "00:00:05"), at(12, "00:00:05")] {
        let ticks = (0..8).map(|_| {
            let pool = pool.clone();
            tokio::spawn(async move { scheduler(&pool, CAUGHT_UP).tick(now).await.unwrap() })
        });
        let mut made = 0;
        for tick in ticks.collect::<Vec<_>>() {
            made += usize::from(matches!(tick.await.unwrap(), Tick::First | Tick::Midnight(_)));
        }
        assert_eq!(made, 1);
    }
    assert_eq!(number(&pool, LISTS).await, 3);
}

#[tokio::test]
async fn old_lists_go_away_with_their_ranks() {
    let pool = database().await;
    order(&pool, at(10, "08:00:00"), "paid", &[("tea", 2)]).await;
    for minute in 0..30 {
        refresh_now(&pool, &seoul(), at(10, &format!("09:{minute:02}:00"))).await.unwrap();
    }
    assert_eq!(number(&pool, LISTS).await, 10);
    assert_eq!(number(&pool, "SELECT count(*) FROM popular_products").await, 10);
    assert_eq!(list(&pool).await, ranked(&[("tea", 2)]));
}

#[tokio::test]
async fn running_makes_the_first_list_at_once_and_stops_when_told() {
    let pool = database().await;
    let shutdown = CancellationToken::new();
    let (running, token) = (scheduler(&pool, CAUGHT_UP), shutdown.clone());
    let running = tokio::spawn(async move { running.run(token).await });
    while number(&pool, LISTS).await == 0 {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    shutdown.cancel();
    running.await.unwrap();
}
