//! What users do, and how often: the goose scenarios.

use std::sync::Arc;
use std::time::Duration;

use goose::goose::{
    GooseMethod, GooseUser, Scenario as GooseScenario, Transaction, TransactionFunction,
    TransactionResult,
};
use serde_json::{Value, json};

use crate::checkout;
use crate::crowd::{Crowd, PRODUCTS, number};
use crate::scenario::Scenario;
use crate::shopper::{ask, change, come_in, me};

const FULL_WALLET: u64 = 1_000_000;
/// Pause of a user who presses a button again and again.
const IMPATIENT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(400));
/// Pause of a user who browses.
const AT_EASE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_millis(800));

/// The goose scenarios.
pub fn of(
    scenario: Scenario,
    crowd: &Arc<Crowd>,
) -> rushgate_loadtest::Outcome<Vec<GooseScenario>> {
    let [rushing, buying, shopping] = Scenario::WEIGHTS.map(|weight| weight as usize);
    let made =
        |name, wait: (Duration, Duration), weight| -> rushgate_loadtest::Outcome<GooseScenario> {
            let begin = Transaction::new(introduced(crowd)).set_on_start().set_name("come in");
            Ok(GooseScenario::new(name)
                .set_wait_time(wait.0, wait.1)?
                .set_weight(weight)?
                .register_transaction(begin))
        };
    let mut scenarios = vec![];
    if scenario.rushes() {
        let rush = made("coupon-rush", IMPATIENT, rushing)?;
        scenarios.push(
            rush.register_transaction(doing("take a coupon", 1, |user| {
                Box::pin(take_coupon(user))
            })?),
        );
    }
    if scenario.sells() {
        let sale = made("flash-sale", IMPATIENT, buying)?
            .register_transaction(
                doing("fill the wallet", 1, |user| Box::pin(fill_wallet(user)))?.set_on_start(),
            )
            .register_transaction(doing("buy", 8, |user| Box::pin(buy(user)))?)
            .register_transaction(doing("look", 2, |user| Box::pin(look(user)))?)
            .register_transaction(
                doing("look at last", 1, |user| Box::pin(look(user)))?.set_on_stop(),
            );
        scenarios.push(sale);
    }
    if scenario.checks_out() {
        let checkout = made("checkout", IMPATIENT, 1)?;
        scenarios.push(checkout.register_transaction(doing("pay by card", 1, |user| {
            Box::pin(checkout::pay_by_card(user))
        })?));
    }
    if scenario.browses() {
        let shop = made("shop", AT_EASE, shopping)?
            .register_transaction(
                doing("take a coupon", 1, |user| Box::pin(take_everyday(user)))?.set_on_start(),
            )
            .register_transaction(doing("browse", 5, |user| Box::pin(browse(user)))?)
            .register_transaction(doing("charge", 2, |user| Box::pin(charge(user)))?)
            .register_transaction(doing("order", 3, |user| Box::pin(order(user)))?)
            .register_transaction(doing("cancel", 1, |user| Box::pin(cancel(user)))?)
            .register_transaction(doing("look", 2, |user| Box::pin(look(user)))?)
            .register_transaction(
                doing("look at last", 1, |user| Box::pin(look(user)))?.set_on_stop(),
            );
        scenarios.push(shop);
    }
    Ok(scenarios)
}

type Doing = for<'a> fn(
    &'a mut GooseUser,
) -> std::pin::Pin<Box<dyn Future<Output = TransactionResult> + Send + 'a>>;

fn doing(name: &str, weight: usize, what: Doing) -> rushgate_loadtest::Outcome<Transaction> {
    let function: TransactionFunction = Arc::new(what);
    Ok(Transaction::new(function).set_name(name).set_weight(weight)?)
}

/// The first transaction of each user: sets up its session.
fn introduced(crowd: &Arc<Crowd>) -> TransactionFunction {
    let crowd = Arc::clone(crowd);
    Arc::new(move |user| {
        let crowd = Arc::clone(&crowd);
        Box::pin(async move { come_in(user, crowd) })
    })
}

async fn take_coupon(user: &mut GooseUser) -> TransactionResult {
    let shopper = me(user)?;
    let (crowd, who) = (Arc::clone(&shopper.crowd), shopper.number);
    let (path, body) = (coupons_of(&crowd.template()), json!({ "user_id": shopper.name }));
    let fine = ["sold-out", "already-issued", "issuance-not-open"];
    // Without a key, like a user who presses a button. So the instance can refuse it from its
    // sold-out memory.
    let answer = ask(
        user,
        GooseMethod::Post,
        "take a coupon of the rush",
        &path,
        (None, Some(&body)),
        &fine,
    )
    .await?;
    match answer {
        Some(it) if it.status == 201 => {
            crowd.note(|told| told.coupons.push((who, number(&it.body, "serial"))))
        }
        Some(it) if it.status < 500 => {}
        _ => crowd.note(|told| told.unknown += 1),
    }
    Ok(())
}

async fn take_everyday(user: &mut GooseUser) -> TransactionResult {
    let shopper = me(user)?;
    let (path, body) = (coupons_of(&shopper.crowd.everyday()), json!({ "user_id": shopper.name }));
    if let Some(answer) = change(user, "take an everyday coupon", &path, Some(&body), &[]).await? {
        me(user)?.coupon = answer.body["coupon_id"].as_str().map(str::to_owned);
    }
    fill_wallet(user).await
}

async fn fill_wallet(user: &mut GooseUser) -> TransactionResult {
    add(user, FULL_WALLET / 2).await
}

async fn charge(user: &mut GooseUser) -> TransactionResult {
    add(user, 10_000).await
}

async fn add(user: &mut GooseUser, amount: u64) -> TransactionResult {
    let path = format!("/v1/users/{}/wallet/charges", me(user)?.name);
    let fine = ["balance-limit-exceeded"];
    let answer =
        change(user, "charge the wallet", &path, Some(&json!({ "amount": amount })), &fine).await?;
    if answer.is_some_and(|it| it.status == 201) {
        me(user)?.balance += amount;
    }
    Ok(())
}

async fn buy(user: &mut GooseUser) -> TransactionResult {
    let shopper = me(user)?;
    let crowd = Arc::clone(&shopper.crowd);
    let body =
        json!({"user_id": shopper.name, "items": [{"product_id": crowd.scarce(), "quantity": 1}]});
    let fine = ["insufficient-stock", "insufficient-balance"];
    let answer = change(user, "buy in the flash sale", "/v1/orders", Some(&body), &fine).await?;
    if let Some(answer) = answer.filter(|it| it.status == 201) {
        let shopper = me(user)?;
        shopper.balance = shopper.balance.saturating_sub(number(&answer.body, "total"));
        crowd.note(|told| {
            told.pieces += 1;
            told.orders += 1;
        });
    }
    Ok(())
}

async fn browse(user: &mut GooseUser) -> TransactionResult {
    let shopper = me(user)?;
    let product = format!("/v1/products/{}", shopper.crowd.product(shopper.keys % PRODUCTS));
    for (name, path) in [("list products", "/v1/products"), ("read a product", &product)] {
        ask(user, GooseMethod::Get, name, path, (None, None), &[]).await?;
    }
    Ok(())
}

/// Orders one to three products; the first order uses the coupon.
async fn order(user: &mut GooseUser) -> TransactionResult {
    let shopper = me(user)?;
    let crowd = Arc::clone(&shopper.crowd);
    let begin = shopper.number + shopper.keys;
    let line = |i| json!({"product_id": crowd.product((begin + i) % PRODUCTS), "quantity": 1});
    let lines: Vec<Value> = (0..=begin % 3).map(line).collect();
    let mut body = json!({"user_id": shopper.name, "items": lines});
    if let Some(coupon) = &shopper.coupon {
        body["coupon_id"] = json!(coupon);
    }
    let answer =
        change(user, "order", "/v1/orders", Some(&body), &["insufficient-balance"]).await?;
    if let Some(answer) = answer.filter(|it| it.status == 201) {
        let total = number(&answer.body, "total");
        let shopper = me(user)?;
        shopper.balance = shopper.balance.saturating_sub(total);
        shopper.coupon = None;
        shopper.last_order = answer.body["order_id"].as_str().map(|id| (id.to_owned(), total));
        crowd.note(|told| told.orders += 1);
    }
    Ok(())
}

async fn cancel(user: &mut GooseUser) -> TransactionResult {
    let shopper = me(user)?;
    let crowd = Arc::clone(&shopper.crowd);
    let Some((order, total)) = shopper.last_order.take() else { return Ok(()) };
    let path = format!("/v1/orders/{order}/cancel");
    let answer = change(user, "cancel an order", &path, None, &["balance-limit-exceeded"]).await?;
    if answer.is_some_and(|it| it.status == 200) {
        me(user)?.balance += total;
        crowd.note(|told| told.cancelled += 1);
    }
    Ok(())
}

/// Checks that the balance in the shop is the one that the user expects from its answers.
async fn look(user: &mut GooseUser) -> TransactionResult {
    let shopper = me(user)?;
    let (crowd, name) = (Arc::clone(&shopper.crowd), shopper.name.clone());
    let path = format!("/v1/users/{name}/wallet");
    let answer = ask(user, GooseMethod::Get, "read the wallet", &path, (None, None), &[]).await?;
    let shopper = me(user)?;
    if let Some(answer) = answer.filter(|it| it.status == 200 && shopper.sure) {
        let (held, reckoned) = (number(&answer.body, "balance"), shopper.balance);
        crowd.note(|told| {
            told.wallets += 1;
            if held != reckoned {
                told.wrong_wallets.push(format!("{name} holds {held} won instead of {reckoned}"));
            }
        });
    }
    if crowd.has_catalogue {
        for (what, rest) in [("list orders", "orders"), ("list coupons", "coupons")] {
            let path = format!("/v1/users/{name}/{rest}?limit=5");
            ask(user, GooseMethod::Get, what, &path, (None, None), &[]).await?;
        }
    }
    Ok(())
}

fn coupons_of(template: &str) -> String {
    format!("/v1/coupon-templates/{template}/coupons")
}
