//! The shop's rules as the scripts decide them, with a clock that the tests set.

use rushgate::domain::limits::COUPON_USABLE_MS;
use rushgate::domain::{Discount, ProductStatus};
use rushgate::gate::*;

use crate::shop::*;

async fn shop_with(discount: Discount, min_subtotal: u64) -> (Shop, uuid::Uuid) {
    let shop = Shop::open().await;
    shop.put_product("a", 1_900, 1_000).await;
    shop.put_product("b", 300, 1_000).await;
    shop.put_template(PutTemplate { discount, min_subtotal, ..open_template("t", 10) }).await;
    shop.charge("ann", 1_000_000).await;
    let coupon = shop.issue("t", "ann").await.unwrap().coupon_id.0;
    (shop, coupon)
}

#[tokio::test]
async fn an_amount_is_never_more_than_the_subtotal() {
    let (shop, coupon) = shop_with(Discount::Amount { value: 2_000 }, 0).await;
    let placed = shop.place(order("ann", &[("b", 3)], Some(coupon))).await.unwrap();
    assert_eq!((placed.subtotal, placed.discount, placed.total), (900, 900, 0));
}

/// Rounding down cannot show here, because prices are multiples of 100. The scripts' tests use
/// other prices.
#[tokio::test]
async fn a_percentage_applies_to_the_whole_order() {
    let (shop, coupon) = shop_with(Discount::Percent { value: 33, max: None }, 0).await;
    let placed = shop.place(order("ann", &[("a", 1), ("b", 1)], Some(coupon))).await.unwrap();
    assert_eq!((placed.subtotal, placed.discount, placed.total), (2_200, 726, 1_474));
    let (shop, coupon) = shop_with(Discount::Percent { value: 7, max: None }, 0).await;
    let placed = shop.place(order("ann", &[("a", 1)], Some(coupon))).await.unwrap();
    assert_eq!(placed.discount, 133);
    let (shop, coupon) = shop_with(Discount::Percent { value: 1, max: None }, 0).await;
    assert_eq!(shop.place(order("ann", &[("b", 1)], Some(coupon))).await.unwrap().discount, 3);
}

#[tokio::test]
async fn a_percentage_may_have_a_maximum() {
    let (shop, coupon) = shop_with(Discount::Percent { value: 50, max: Some(800) }, 0).await;
    assert_eq!(shop.place(order("ann", &[("a", 1)], Some(coupon))).await.unwrap().discount, 800);
}

#[tokio::test]
async fn a_coupon_may_need_a_least_subtotal() {
    let (shop, coupon) = shop_with(Discount::Amount { value: 100 }, 1_900).await;
    let refusal = shop.place(order("ann", &[("b", 6)], Some(coupon))).await;
    assert_eq!(refusal, Err(OrderRefusal::SubtotalTooLow(1_900, 1_800)));
    assert_eq!(shop.place(order("ann", &[("a", 1)], Some(coupon))).await.unwrap().total, 1_800);
}

#[tokio::test]
async fn a_coupon_is_usable_for_365_days_to_the_millisecond() {
    let (shop, coupon) = shop_with(Discount::Amount { value: 100 }, 0).await;
    shop.charge("bob", 10_000).await;
    let bobs = shop.issue("t", "bob").await.unwrap();
    assert_eq!(bobs.expires_at, bobs.issued_at + COUPON_USABLE_MS);
    shop.set_clock(bobs.expires_at - 1).await;
    assert!(shop.place(order("bob", &[("b", 1)], Some(bobs.coupon_id.0))).await.is_ok());
    shop.set_clock(bobs.expires_at).await;
    let refusal = shop.place(order("ann", &[("b", 1)], Some(coupon))).await;
    assert!(
        matches!(refusal, Err(OrderRefusal::CouponExpired(at)) if at <= bobs.expires_at),
        "{refusal:?}"
    );
}

#[tokio::test]
async fn a_coupon_is_its_owners_and_is_used_once() {
    let (shop, coupon) = shop_with(Discount::Amount { value: 100 }, 0).await;
    shop.charge("bob", 10_000).await;
    let stolen = shop.place(order("bob", &[("b", 1)], Some(coupon))).await;
    assert_eq!(stolen, Err(OrderRefusal::UnknownCoupon));
    let guessed = shop.place(order("bob", &[("b", 1)], Some(uuid::Uuid::now_v7()))).await;
    assert_eq!(guessed, Err(OrderRefusal::UnknownCoupon));
    shop.place(order("ann", &[("b", 1)], Some(coupon))).await.unwrap();
    let again = shop.place(order("ann", &[("b", 1)], Some(coupon))).await;
    assert_eq!(again, Err(OrderRefusal::CouponUsed));
}

#[tokio::test]
async fn coupons_are_issued_in_their_window_only() {
    let shop = Shop::open().await;
    let now = jiff::Timestamp::now().as_millisecond();
    let (from, until) = (now + 100_000, now + 200_000);
    shop.put_template(PutTemplate {
        issue_from: from,
        issue_until: until,
        ..open_template("t", 10)
    })
    .await;
    assert_eq!(shop.issue("t", "ann").await, Err(IssueRefusal::NotOpenBefore(from)));
    shop.set_clock(from - 1).await;
    assert_eq!(shop.issue("t", "ann").await, Err(IssueRefusal::NotOpenBefore(from)));
    shop.set_clock(from).await;
    let ann = shop.issue("t", "ann").await.unwrap();
    shop.set_clock(until - 1).await;
    assert!(shop.issue("t", "bob").await.is_ok());
    shop.set_clock(until).await;
    assert_eq!(shop.issue("t", "cat").await, Err(IssueRefusal::ClosedSince(until)));
    assert_eq!(shop.issue("t", "ann").await, Err(IssueRefusal::AlreadyIssued(ann.coupon_id)));
}

#[tokio::test]
async fn a_limit_may_be_raised_but_not_below_what_is_issued() {
    let shop = Shop::open().await;
    shop.put_template(open_template("t", 1)).await;
    shop.issue("t", "ann").await.unwrap();
    assert_eq!(shop.issue("t", "bob").await, Err(IssueRefusal::SoldOut));
    let lower = PutTemplate { max_issued: 0, ..open_template("t", 1) };
    let refusal = shop.gate.put_template(lower, soon()).await.unwrap();
    assert_eq!(refusal.unwrap_err(), TemplateRefusal::LimitBelowIssued(1));
    let put = shop.put_template(open_template("t", 2)).await;
    assert_eq!((put.created, put.issued, put.number), (false, 1, 1));
    assert_eq!(shop.issue("t", "bob").await.unwrap().serial, 2);
}

#[tokio::test]
async fn a_balance_stays_between_zero_and_a_million() {
    let shop = Shop::open().await;
    shop.put_product("a", 1_000_000, 10).await;
    shop.put_product("b", 100, 10).await;
    assert_eq!(
        shop.charge("ann", 0).await.balance_after,
        0,
        "a charge of nothing makes the wallet"
    );
    shop.charge("ann", 1_000_000).await;
    let more = ChargeWallet { user_id: user("ann"), amount: 1 };
    let refusal = shop.gate.charge_wallet(more, None, soon()).await.unwrap();
    assert_eq!(refusal.unwrap_err(), ChargeRefusal::BalanceLimit(1_000_000));
    shop.place(order("ann", &[("a", 1)], None)).await.unwrap();
    let refusal = shop.place(order("ann", &[("b", 1)], None)).await;
    assert_eq!(refusal, Err(OrderRefusal::InsufficientBalance(0, 100)));
}

#[tokio::test]
async fn what_is_suspended_is_not_sold_and_a_changed_price_is_noticed() {
    let shop = Shop::open().await;
    shop.put_product("a", 500, 10).await;
    shop.charge("ann", 10_000).await;
    let put = |status, price| PutProduct {
        product_id: product("a"),
        name: "A".into(),
        price,
        status,
        stock: None,
        rules: Default::default(),
    };
    let changed =
        shop.gate.put_product(put(ProductStatus::Suspended, 500), soon()).await.unwrap().unwrap();
    assert_eq!((changed.fact.created, changed.fact.stock_after), (false, 10));
    let refusal = shop.place(order("ann", &[("a", 1)], None)).await;
    assert_eq!(refusal, Err(OrderRefusal::NotOnSale("a".into())));
    shop.gate.put_product(put(ProductStatus::OnSale, 600), soon()).await.unwrap().unwrap();
    let expecting =
        |total| PlaceOrder { expected_total: Some(total), ..order("ann", &[("a", 2)], None) };
    assert_eq!(shop.place(expecting(1_000)).await, Err(OrderRefusal::PriceChanged(1_200)));
    assert_eq!(shop.place(expecting(1_200)).await.unwrap().total, 1_200);
}

#[tokio::test]
async fn stock_is_given_once_and_adjusted_within_its_bounds() {
    let shop = Shop::open().await;
    shop.put_product("a", 500, 10).await;
    let again = PutProduct {
        product_id: product("a"),
        name: "A".into(),
        price: 500,
        status: ProductStatus::OnSale,
        stock: Some(10),
        rules: Default::default(),
    };
    let refusal = shop.gate.put_product(again, soon()).await.unwrap();
    assert_eq!(refusal.unwrap_err(), ProductRefusal::StockGiven);
    let adjust = async |delta| {
        let request = AdjustStock { product_id: product("a"), delta, reason: Some("count".into()) };
        shop.gate.adjust_stock(request, None, soon()).await.unwrap().map(|a| a.fact.stock_after)
    };
    assert_eq!(adjust(-11).await, Err(StockRefusal::BelowZero(10)));
    assert_eq!(adjust(-10).await, Ok(0));
    assert_eq!(adjust(1_000_000_000).await, Ok(1_000_000_000));
    assert_eq!(adjust(1).await, Err(StockRefusal::TooHigh(1_000_000_000)));
}

#[tokio::test]
async fn a_cancelled_order_gives_back_stock_balance_and_coupon_once() {
    let (shop, coupon) = shop_with(Discount::Amount { value: 100 }, 0).await;
    let placed = shop.place(order("ann", &[("a", 2), ("b", 1)], Some(coupon))).await.unwrap();
    let cancelled = shop.cancel(&placed).await.unwrap();
    assert_eq!((cancelled.refund, cancelled.balance_after), (4_000, 1_000_000));
    assert!(cancelled.coupon_returned);
    assert_eq!((shop.stock("a").await, shop.stock("b").await), (1_000, 1_000));
    assert_eq!(shop.cancel(&placed).await, Err(CancelRefusal::AlreadyCancelled));
    // The coupon can be used again, by one order.
    let second = shop.place(order("ann", &[("b", 1)], Some(coupon))).await.unwrap();
    assert_eq!(second.discount, 100);
    let third = shop.place(order("ann", &[("b", 1)], Some(coupon))).await;
    assert_eq!(third, Err(OrderRefusal::CouponUsed));
}

#[tokio::test]
async fn a_coupon_that_has_expired_by_then_is_not_given_back() {
    let (shop, coupon) = shop_with(Discount::Amount { value: 100 }, 0).await;
    let issued_at =
        shop.gate.held_coupons(&user("ann"), None, 100, None).await.unwrap().unwrap().value[0]
            .issued_at;
    let placed = shop.place(order("ann", &[("b", 1)], Some(coupon))).await.unwrap();
    shop.set_clock(issued_at + COUPON_USABLE_MS).await;
    assert!(!shop.cancel(&placed).await.unwrap().coupon_returned);
    let held = shop.gate.held_coupons(&user("ann"), None, 100, None).await.unwrap().unwrap().value;
    assert_eq!(held[0].order_id, Some(placed.order_id.0));
}

#[tokio::test]
async fn a_refund_over_the_limit_is_refused() {
    let shop = Shop::open().await;
    shop.put_product("a", 5_000, 10).await;
    shop.charge("ann", 1_000_000).await;
    let placed = shop.place(order("ann", &[("a", 1)], None)).await.unwrap();
    shop.charge("ann", 1).await;
    assert_eq!(shop.cancel(&placed).await, Err(CancelRefusal::BalanceLimit(995_001)));
    assert_eq!(shop.stock("a").await, 9);
}

#[tokio::test]
async fn an_order_must_have_been_read_in_this_epoch_to_be_cancelled() {
    let shop = Shop::open().await;
    shop.put_product("a", 500, 10).await;
    shop.charge("ann", 1_000).await;
    let placed = shop.place(order("ann", &[("a", 1)], None)).await.unwrap();
    let stale = CancelOrder { read_in_epoch: 0, ..shop.cancellation(&placed).await };
    let refusal = shop.gate.cancel_order(stale, None, soon()).await.unwrap();
    assert_eq!(refusal.unwrap_err(), CancelRefusal::StaleRead);
}

#[tokio::test]
async fn lists_come_in_the_order_of_ids_and_coupons_newest_first() {
    let shop = Shop::open().await;
    for id in ["b", "a", "C", "a-1"] {
        shop.put_product(id, 100, 1).await;
        shop.put_template(open_template(id, 1)).await;
    }
    let names = |products: Vec<rushgate::domain::Product>| -> Vec<String> {
        products.into_iter().map(|p| p.product_id.into()).collect()
    };
    assert_eq!(names(shop.gate.list_products(None, 10).await.unwrap()), ["C", "a", "a-1", "b"]);
    assert_eq!(names(shop.gate.list_products(Some(&product("a")), 1).await.unwrap()), ["a-1"]);
    for id in ["b", "a", "C"] {
        shop.issue(id, "ann").await.unwrap();
    }
    let held = shop.gate.held_coupons(&user("ann"), None, 100, None).await.unwrap().unwrap().value;
    let held: Vec<&str> = held.iter().map(|c| c.template.template_id.as_str()).collect();
    assert_eq!(held, ["C", "a", "b"]);
}
