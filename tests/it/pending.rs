//! Orders that are paid outside: held, confirmed, cancelled, expired; through races and rebuilds.

use std::time::{Duration, Instant};

use futures::future::join_all;
use rushgate::domain::fact::{OrderConfirmed, OrderPlaced};
use rushgate::gate::{
    CancelRefusal, ChargeRefusal, ChargeWallet, ConfirmOrder, ConfirmRefusal, OrderRefusal,
    PayOutside, PlaceOrder, PutProduct,
};
use uuid::Uuid;

use crate::shop::{Shop, open_template, order, soon, user};

/// So long that it does not end within a test.
const LONG_MS: u64 = 600_000;

fn outside(wallet_amount: u64, hold_ms: u64) -> Option<PayOutside> {
    Some(PayOutside { wallet_amount, hold_ms, pending_limit: 5 })
}

fn held(user_id: &str, wanted: &[(&str, u64)], won: u64, hold_ms: u64) -> PlaceOrder {
    PlaceOrder { outside: outside(won, hold_ms), ..order(user_id, wanted, None) }
}

async fn confirm(
    shop: &Shop,
    placed: &OrderPlaced,
    reference: &str,
) -> Result<OrderConfirmed, ConfirmRefusal> {
    let request =
        ConfirmOrder { order_id: placed.order_id.0, payment_reference: reference.to_owned() };
    shop.gate.confirm_order(&request, None, soon()).await.unwrap().map(|it| it.fact)
}

/// Waits until the gate's time has passed the end of the hold.
async fn after_hold(shop: &Shop, placed: &OrderPlaced) {
    let ends = placed.more.as_ref().unwrap().outside.unwrap().hold_expires_at.unwrap();
    while shop.gate.now().await.unwrap() < ends {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn expire(shop: &Shop) -> usize {
    shop.gate.end_some_holds(soon()).await.unwrap()
}

async fn status(shop: &Shop, order_id: Uuid) -> String {
    let sql = "SELECT status FROM orders WHERE order_id = $1";
    sqlx::query_scalar(sql).bind(order_id).fetch_one(&shop.pool).await.unwrap()
}

async fn events(shop: &Shop, order_id: Uuid) -> Vec<String> {
    let sql = "SELECT routing_key FROM outbox WHERE event_id LIKE $1 || '%' ORDER BY outbox_id";
    sqlx::query_scalar(sql).bind(order_id.to_string()).fetch_all(&shop.pool).await.unwrap()
}

/// A shop with 10 of product `a` at 1,000 won, and 5,000 won in ann's wallet.
async fn stocked() -> Shop {
    let shop = Shop::open().await;
    shop.put_product("a", 1_000, 10).await;
    shop.charge("ann", 5_000).await;
    shop
}

#[tokio::test]
async fn an_order_holds_what_it_takes_until_it_is_confirmed() {
    let mut shop = stocked().await;
    shop.put_template(open_template("t", 1)).await;
    let coupon = shop.issue("t", "ann").await.unwrap().coupon_id.0;
    let request = PlaceOrder {
        coupon_id: Some(coupon),
        reference: Some("2026-1".into()),
        ..held("ann", &[("a", 4)], 500, LONG_MS)
    };
    let placed = shop.place(request.clone()).await.unwrap();
    assert_eq!((placed.total, placed.balance_after), (3_000, 4_500));
    assert_eq!((shop.stock("a").await, shop.balance("ann").await), (6, Some(4_500)));
    let again = shop.place(request).await;
    assert_eq!(again, Err(OrderRefusal::CouponUsed), "the coupon is held");
    shop.apply_all().await;
    assert_eq!(status(&shop, placed.order_id.0).await, "pending");
    assert_eq!(events(&shop, placed.order_id.0).await, [""; 0]);
    shop.assert_audit_clean().await;

    let confirmed = confirm(&shop, &placed, "card-1").await.unwrap();
    assert_eq!((confirmed.order.total, confirmed.order.amount_due()), (3_000, 2_500));
    assert_eq!(confirmed.order.reference.as_deref(), Some("2026-1"));
    assert_eq!(confirm(&shop, &placed, "card-1").await, Err(ConfirmRefusal::NotPending));
    assert_eq!((shop.stock("a").await, shop.balance("ann").await), (6, Some(4_500)));
    shop.apply_all().await;
    assert_eq!(status(&shop, placed.order_id.0).await, "paid");
    assert_eq!(events(&shop, placed.order_id.0).await, ["order.completed"]);
    shop.assert_audit_clean().await;
}

#[tokio::test]
async fn what_a_hold_took_comes_back_once_when_it_ends() {
    let mut shop = stocked().await;
    shop.put_template(open_template("t", 1)).await;
    let coupon = shop.issue("t", "ann").await.unwrap().coupon_id.0;
    let request = PlaceOrder { coupon_id: Some(coupon), ..held("ann", &[("a", 4)], 500, 200) };
    let placed = shop.place(request).await.unwrap();
    assert_eq!(expire(&shop).await, 0, "not due yet");
    after_hold(&shop, &placed).await;
    let refused = confirm(&shop, &placed, "card-1").await;
    assert!(
        matches!(refused, Err(ConfirmRefusal::HoldExpired(_))),
        "before any sweep: {refused:?}"
    );
    // Several sweeps at once: each order ends once.
    let sweeps = join_all((0..4).map(|_| expire(&shop))).await;
    assert!(sweeps.contains(&1), "{sweeps:?}");
    assert_eq!((shop.stock("a").await, shop.balance("ann").await), (10, Some(5_000)));
    assert_eq!(confirm(&shop, &placed, "card-1").await, Err(ConfirmRefusal::NotPending));
    shop.apply_all().await;
    assert_eq!(status(&shop, placed.order_id.0).await, "expired");
    assert_eq!(events(&shop, placed.order_id.0).await, ["order.expired"]);
    let sql = "SELECT order_id FROM coupons WHERE coupon_id = $1";
    let used_by: Option<Uuid> =
        sqlx::query_scalar(sql).bind(coupon).fetch_one(&shop.pool).await.unwrap();
    assert_eq!(used_by, None, "the coupon is available again");
    shop.assert_audit_clean().await;
}

#[tokio::test]
async fn a_pending_order_is_cancelled_or_confirmed_never_both() {
    let mut shop = stocked().await;
    for _ in 0..20 {
        let placed = shop.place(held("ann", &[("a", 1)], 100, LONG_MS)).await.unwrap();
        let (cancelled, first, second) = tokio::join!(
            shop.cancel(&placed),
            confirm(&shop, &placed, "card-1"),
            confirm(&shop, &placed, "card-2"),
        );
        let outcomes = [cancelled.is_ok(), first.is_ok(), second.is_ok()];
        assert_eq!(outcomes.iter().filter(|ok| **ok).count(), 1, "{outcomes:?}");
        if let Err(refusal) = cancelled {
            assert_eq!(refusal, CancelRefusal::NotPending);
            shop.apply_all().await;
            // As an order that is paid by now.
            let mut request = shop.cancellation(&placed).await;
            (request.was_pending, request.paid_outside) = (false, Some(900));
            let cancelled = shop.gate.cancel_order(request, None, soon()).await.unwrap().unwrap();
            assert_eq!(
                cancelled.fact.refund, 100,
                "what was paid outside is the shop's to give back"
            );
        }
    }
    assert_eq!((shop.stock("a").await, shop.balance("ann").await), (10, Some(5_000)));
    shop.apply_all().await;
    shop.assert_audit_clean().await;
}

#[tokio::test]
async fn wallet_parts_count_towards_the_limits_of_wallets_and_of_pending_orders() {
    let mut shop = stocked().await;
    shop.charge("ann", 994_000).await; // 999,000
    shop.place(held("ann", &[("a", 1)], 500, LONG_MS)).await.unwrap();
    let charge = async |amount| {
        let request = ChargeWallet { user_id: user("ann"), amount };
        shop.gate.charge_wallet(request, None, soon()).await.unwrap().map(|_| ())
    };
    assert_eq!(charge(1_100).await, Err(ChargeRefusal::BalanceLimit(998_500)));
    assert_eq!(charge(1_000).await, Ok(()), "998,500 and 500 held: exactly the limit");
    let too_much = shop.place(held("ann", &[("a", 1)], 1_001, LONG_MS)).await;
    assert_eq!(too_much, Err(OrderRefusal::WalletAmountAbove(1_000)));
    let at_once = shop.place(held("ann", &[("a", 1)], 1_000, LONG_MS)).await.unwrap();
    assert_eq!(at_once.more.unwrap().outside.unwrap().hold_expires_at, None, "nothing is due");
    for _ in 0..4 {
        shop.place(held("ann", &[("a", 1)], 0, LONG_MS)).await.unwrap();
    }
    let sixth = shop.place(held("ann", &[("a", 1)], 0, LONG_MS)).await;
    assert_eq!(sixth, Err(OrderRefusal::TooManyPending(5)));
    shop.apply_all().await;
    shop.assert_audit_clean().await;
}

#[tokio::test]
async fn a_rebuild_keeps_holds_counts_and_terms() {
    let mut shop = stocked().await;
    let limited = PutProduct {
        rules: rushgate::domain::SaleRules {
            per_user_limit: Some(3),
            attributes: Some(r#"{"colour":"red"}"#.into()),
            ..Default::default()
        },
        ..crate::shop::plain_product("a", 1_000)
    };
    shop.gate.put_product(limited, soon()).await.unwrap().unwrap();
    shop.put_template(open_template("t", 5)).await;
    let early = shop.issue("t", "ann").await.unwrap();
    let mut changed = open_template("t", 5);
    changed.discount = rushgate::domain::Discount::Amount { value: 10 };
    shop.put_template(changed).await;
    assert_eq!(
        shop.issue("t", "ann").await.unwrap_err(),
        rushgate::gate::IssueRefusal::AlreadyIssued(early.coupon_id),
        "one per user and template, whatever the terms"
    );
    shop.issue("t", "bob").await.unwrap();
    let placed = shop.place(held("ann", &[("a", 2)], 500, LONG_MS)).await.unwrap();
    let ending = shop.place(held("ann", &[("a", 1)], 0, 300)).await.unwrap();
    shop.apply_all().await;
    shop.assert_audit_clean().await;

    shop.rebuild().await;
    shop.assert_audit_clean().await;
    let over = shop.place(order("ann", &[("a", 1)], None)).await;
    assert_eq!(over, Err(OrderRefusal::PurchaseLimit("a".into(), 3, 3, 1)));
    after_hold(&shop, &ending).await;
    assert_eq!(expire(&shop).await, 1);
    assert_eq!(shop.stock("a").await, 8);
    let with_coupon = order("ann", &[("a", 1)], Some(early.coupon_id.0));
    assert_eq!(shop.place(with_coupon).await.unwrap().discount, 1_000, "as it was issued");
    assert!(confirm(&shop, &placed, "card").await.is_ok());
    shop.apply_all().await;
    shop.assert_audit_clean().await;
    shop.rebuild().await;
    shop.assert_audit_clean().await;
}

#[tokio::test]
async fn a_limit_counts_pending_and_paid_orders_and_starts_anew() {
    let mut shop = stocked().await;
    let put = async |limit: Option<u64>| {
        let request = PutProduct {
            rules: rushgate::domain::SaleRules { per_user_limit: limit, ..Default::default() },
            ..crate::shop::plain_product("a", 1_000)
        };
        shop.gate.put_product(request, soon()).await.unwrap().unwrap()
    };
    shop.place(order("ann", &[("a", 1)], None)).await.unwrap();
    put(Some(2)).await;
    let first = shop.place(order("ann", &[("a", 2)], None)).await.unwrap();
    let refused = |bought| Err(OrderRefusal::PurchaseLimit("a".into(), 2, bought, 1));
    assert_eq!(shop.place(order("ann", &[("a", 1)], None)).await, refused(2));
    shop.place(held("bob", &[("a", 2)], 0, LONG_MS)).await.unwrap();
    assert_eq!(shop.place(held("bob", &[("a", 1)], 0, LONG_MS)).await, refused(2));
    put(Some(3)).await;
    shop.place(held("bob", &[("a", 1)], 0, LONG_MS)).await.unwrap();
    put(None).await;
    put(Some(2)).await;
    let second = shop.place(order("ann", &[("a", 1)], None)).await.unwrap();
    shop.apply_all().await;
    // An order that counted for the limit before gives nothing back to this one.
    shop.cancel(&first).await.unwrap();
    assert_eq!(shop.place(order("ann", &[("a", 2)], None)).await, {
        Err(OrderRefusal::PurchaseLimit("a".into(), 2, 1, 2))
    });
    shop.cancel(&second).await.unwrap();
    shop.place(order("ann", &[("a", 2)], None)).await.unwrap();
    shop.apply_all().await;
    shop.assert_audit_clean().await;
}

#[tokio::test]
async fn a_product_is_sold_within_its_window_only() {
    let shop = stocked().await;
    let now = shop.gate.now().await.unwrap();
    let put = async |from: Option<i64>, until: Option<i64>| {
        let request = PutProduct {
            rules: rushgate::domain::SaleRules {
                sale_from: from,
                sale_until: until,
                ..Default::default()
            },
            ..crate::shop::plain_product("a", 1_000)
        };
        shop.gate.put_product(request, soon()).await.unwrap().unwrap();
    };
    let place = async || shop.place(order("ann", &[("a", 1)], None)).await.map(|_| ());
    put(Some(now + 60_000), None).await;
    assert_eq!(place().await, Err(OrderRefusal::SaleNotOpen("a".into(), now + 60_000)));
    put(Some(now - 1_000), Some(now)).await;
    assert_eq!(place().await, Err(OrderRefusal::SaleEnded("a".into(), now)));
    put(Some(now - 1_000), Some(now + 60_000)).await;
    assert_eq!(place().await, Ok(()));
}

/// 2,000 users race for 100 pieces, two each at most; every other one lets the hold end.
#[tokio::test]
async fn a_crowd_that_pays_outside_loses_no_piece_and_nobody_gets_too_many() {
    let mut shop = Shop::open().await;
    let limited = PutProduct {
        stock: Some(100),
        rules: rushgate::domain::SaleRules { per_user_limit: Some(2), ..Default::default() },
        ..crate::shop::plain_product("drop", 1_000)
    };
    shop.gate.put_product(limited, soon()).await.unwrap().unwrap();
    let shop_ref = &shop;
    let racer = async |n: u64| {
        let mut sold = 0;
        for _ in 0..3 {
            let request = held(&format!("u{n}"), &[("drop", 1)], 0, 1_500);
            let decision =
                shop_ref.gate.place_order(request, None, Instant::now() + Duration::from_secs(20));
            let Ok(placed) = decision.await.unwrap() else { continue };
            if n.is_multiple_of(2) {
                sold += u64::from(confirm(shop_ref, &placed.fact, "card").await.is_ok());
            }
        }
        sold
    };
    let sold: u64 = join_all((0..2_000).map(racer)).await.into_iter().sum();
    let deadline = Instant::now() + Duration::from_secs(20);
    while pending(&shop).await > 0 {
        assert!(Instant::now() < deadline, "holds do not end");
        expire(&shop).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(sold > 0);
    assert_eq!(shop.stock("drop").await + sold, 100, "{sold} sold");
    shop.apply_all().await;
    let most: i64 = sqlx::query_scalar("SELECT max(bought) FROM purchases")
        .fetch_one(&shop.pool)
        .await
        .unwrap();
    assert!(most <= 2, "{most}");
    let paid: i64 = sqlx::query_scalar("SELECT count(*) FROM orders WHERE status = 'paid'")
        .fetch_one(&shop.pool)
        .await
        .unwrap();
    assert_eq!(paid.unsigned_abs(), sold);
    shop.assert_audit_clean().await;
}

#[tokio::test]
async fn an_epoch_without_new_things_stays_open_to_earlier_versions() {
    let mut shop = stocked().await;
    shop.place(order("ann", &[("a", 1)], None)).await.unwrap();
    assert_eq!(raw_state(&shop).await, "open");
    shop.place(held("ann", &[("a", 1)], 0, LONG_MS)).await.unwrap();
    assert_eq!(raw_state(&shop).await, "open-2", "an earlier version takes it for closed");
    shop.apply_all().await;
    // As an earlier version would move the cursor.
    let moved = sqlx::query("UPDATE cell_cursors SET seq = seq + 1").execute(&shop.pool).await;
    let why = moved.unwrap_err().to_string();
    assert!(why.contains("this version does not know"), "{why}");
    shop.rebuild().await;
    assert_eq!(raw_state(&shop).await, "open-2");
}

async fn pending(shop: &Shop) -> u64 {
    use fred::interfaces::HashesInterface;
    shop.raw.hlen(shop.keys().await.pending()).await.unwrap()
}

async fn raw_state(shop: &Shop) -> String {
    use fred::interfaces::HashesInterface;
    shop.raw.hget(rushgate::redis::keys::Keys::meta(0), "state").await.unwrap()
}
