//! Wallets: balance, charges, ledger.

use serde_json::json;

use super::*;

#[tokio::test]
async fn a_user_never_seen_has_nothing() {
    let api = Api::shared().await;
    let user = fresh("user");
    let wallet = api.get(&format!("/v1/users/{user}/wallet")).user(&user).ok(200).await;
    assert_eq!(wallet, json!({"user_id": user, "balance": 0}));
    let entries = api.get(&format!("/v1/users/{user}/wallet/entries")).user(&user).ok(200).await;
    assert_eq!(entries, json!({"data": [], "next": null}));
}

#[tokio::test]
async fn a_charge_adds_to_the_balance_at_once() {
    let api = Api::shared().await;
    let user = fresh("user");
    let charge = api.charge(&user, 700_000).user(&user).ok(201).await;
    let expected = json!({"charge_id": charge["charge_id"], "user_id": user, "amount": 700_000, "balance": 700_000,
        "charged_at": charge["charged_at"]});
    assert_eq!(charge, expected);
    assert_now(&charge, "charged_at");
    let id: uuid::Uuid = text(&charge, "charge_id").parse().unwrap();
    assert_eq!(id.get_version_num(), 7);
    assert_eq!(api.balance(&user).await, 700_000);
    assert_eq!(api.charge(&user, 0).service().ok(201).await["balance"], 700_000, "0 is an amount");
    assert_eq!(
        api.charge(&user, 300_000).admin().ok(201).await["balance"],
        1_000_000,
        "the limit itself"
    );
    let problem = api.charge(&user, 1).user(&user).refused(409, "balance-limit-exceeded").await;
    assert_eq!(problem["balance"], 1_000_000);
    assert_eq!(api.balance(&user).await, 1_000_000);
}

#[tokio::test]
async fn the_ledger_tells_every_change_newest_first() {
    let api = Api::shared().await;
    let (user, mug) = (api.user(50_000).await, api.product(20_000, 1).await);
    let charge = api.charge(&user, 5_000).user(&user).ok(201).await;
    let order = api.order(&user, &[(&mug, 1)], json!({})).ok(201).await;
    api.cancel(&order, &user).ok(200).await;
    let path = format!("/v1/users/{user}/wallet/entries");
    let ledger = api.get(&path).user(&user).ok(200).await;
    assert_eq!(
        members(&ledger["data"][0]),
        BTreeSet::from(["amount", "at", "balance", "kind", "ref_id"])
    );
    assert_eq!(column(&ledger, "kind"), ["refund", "payment", "charge", "charge"]);
    assert_eq!(column(&ledger, "amount"), [20_000, -20_000, 5_000, 50_000]);
    assert_eq!(column(&ledger, "balance"), [55_000, 35_000, 55_000, 50_000]);
    let refs = column(&ledger, "ref_id");
    assert_eq!(refs[..3], [&order["order_id"], &order["order_id"], &charge["charge_id"]]);
    assert_eq!((&ledger["data"][1]["at"], &ledger["next"]), (&order["ordered_at"], &Value::Null));
    assert_eq!(json!(pages(&api, &path, 1).await), ledger["data"]);
    assert_eq!(json!(pages(&api, &path, 3).await), ledger["data"]);
}

#[tokio::test]
async fn end_users_charge_their_wallets_only_where_the_setting_allows_it() {
    let backend = Backend::new().await;
    let instance = backend.serve_all(&[("RUSHGATE_CHARGE_SCOPE", "service")]).await;
    let api = instance.client();
    let user = fresh("user");
    api.charge(&user, 5).user(&user).refused(403, "forbidden").await;
    api.charge(&fresh("another"), 5).user(&user).refused(403, "forbidden").await;
    assert_eq!(api.balance(&user).await, 0);
    api.charge(&user, 5).bearer(&token(&user, "shop service")).ok(201).await;
    api.charge(&user, 5).service().ok(201).await;
    assert_eq!(api.charge(&user, 5).admin().ok(201).await["balance"], 15);
}

#[tokio::test]
async fn a_charge_of_nothing_writes_nothing_but_its_keys_record() {
    let backend = Backend::new().await;
    let instance = backend.serve_all(&[]).await;
    let api = instance.client();
    let (user, key) = (fresh("user"), fresh("key"));
    let end_of_log = async || {
        let status = api.get("/v1/admin/status").admin().ok(200).await;
        status["cells"][0]["seq"].as_u64().unwrap()
    };
    let before = end_of_log().await;
    let charge = api.charge(&user, 0).service().ok(201).await;
    assert_eq!((&charge["amount"], &charge["balance"]), (&json!(0), &json!(0)));
    assert_eq!(end_of_log().await, before, "without a key there is nothing to log");
    let keyed = || api.charge(&user, 0).service().key(&key);
    let first = keyed().ok(201).await;
    assert_eq!(end_of_log().await, before + 1);
    for _ in 0..2 {
        let again = keyed().send().await;
        assert!(again.replayed() && again.body == first, "{again:?}");
        api.charge(&user, 1).service().key(&key).refused(422, "idempotency-key-reused").await;
        let ledger = api.get(&format!("/v1/users/{user}/wallet/entries")).user(&user).ok(200).await;
        assert_eq!(ledger["data"], json!([]));
        assert_eq!(backend.number("SELECT count(*) FROM wallets").await, 0);
        assert_eq!(backend.number("SELECT count(*) FROM idempotency_records").await, 1);
        backend.assert_audit_clean().await;
        backend.rebuild().await;
        instance.wait_until_ready().await;
    }
}
