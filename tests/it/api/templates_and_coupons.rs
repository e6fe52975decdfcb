//! Coupon templates, and coupons issued from them.

use serde_json::json;

use super::*;

#[tokio::test]
async fn a_template_is_created_then_changed() {
    let api = Api::shared().await;
    let id = fresh("welcome");
    let path = format!("/v1/coupon-templates/{id}");
    let body = json!({"name": "10%", "discount": {"type": "percent", "value": 10, "max": 5_000}, "max_issued": 2,
        "issue_from": "2026-01-01T09:00:00+09:00", "issue_until": "2999-01-01T00:00:00Z", "min_subtotal": 10_000});
    let created = api.put(&path, &body).admin().ok(201).await;
    let expected = with(
        body.clone(),
        json!({"id": id, "issue_from": "2026-01-01T00:00:00.000Z", "issue_until": "2999-01-01T00:00:00.000Z",
            "issued": 0, "remaining": 2, "state": "open"}),
    );
    assert_eq!(created, expected);
    assert_eq!(api.get(&path).ok(200).await, created, "without a token");

    api.coupon(&id, &fresh("user")).await;
    let amount = json!({"discount": {"type": "amount", "value": 700}, "max_issued": 1});
    let mut body = with(body, amount);
    body.as_object_mut().unwrap().remove("min_subtotal");
    let changed = api.put(&path, &body).admin().ok(200).await;
    let state = json!({"min_subtotal": 0, "issued": 1, "remaining": 0, "state": "sold_out"});
    assert_eq!(
        changed,
        with(
            with(expected, body.clone()),
            with(
                state,
                json!({
        "issue_from": "2026-01-01T00:00:00.000Z", "issue_until": "2999-01-01T00:00:00.000Z"})
            )
        )
    );
    assert_eq!(api.get(&path).ok(200).await, changed);
    let problem = api
        .put(&path, &with(body, json!({"max_issued": 0})))
        .admin()
        .refused(409, "limit-below-issued")
        .await;
    assert_eq!(problem["issued"], 1);
    assert_eq!(api.get(&path).ok(200).await, changed, "a refusal changes nothing");
}

#[tokio::test]
async fn templates_are_listed_page_by_page_with_their_states() {
    let api = Api::shared().await;
    let after = fresh("zzz-list");
    let far = ("2990-01-01T00:00:00Z", "2999-01-01T00:00:00Z");
    let past = ("2020-01-01T00:00:00Z", "2020-01-02T00:00:00Z");
    for (n, changes, state) in [
        (1, json!({}), "open"),
        (2, json!({"issue_from": far.0, "issue_until": far.1}), "scheduled"),
        (3, json!({"issue_from": past.0, "issue_until": past.1}), "closed"),
        (4, json!({"max_issued": 0}), "sold_out"),
    ] {
        let path = format!("/v1/coupon-templates/{after}-{n}");
        assert_eq!(api.put(&path, &template(changes)).admin().ok(201).await["state"], state);
        assert_eq!(api.get(&path).ok(200).await["state"], state);
    }
    let list = api.get(&format!("/v1/coupon-templates?after={after}&limit=3")).ok(200).await;
    assert_eq!(column(&list, "state"), ["open", "scheduled", "closed"]);
    assert_eq!(list["next"], format!("{after}-3"));
    let rest = api.get(&format!("/v1/coupon-templates?after={after}-3")).ok(200).await;
    assert_eq!((column(&rest, "state"), &rest["next"]), (vec![&json!("sold_out")], &Value::Null));
    let one = api.get(&format!("/v1/coupon-templates/{after}-4")).ok(200).await;
    assert_eq!(rest["data"], json!([one]));
    let all = pages(&api, "/v1/coupon-templates", 2).await;
    assert!(all.is_sorted_by(|a, b| a["id"].as_str() < b["id"].as_str()));
}

#[tokio::test]
async fn coupons_are_issued_first_come_first_served_once_per_user() {
    let api = Api::shared().await;
    let (id, ann, bob) = (api.template(json!({"max_issued": 2})).await, fresh("ann"), fresh("bob"));
    let issued = api.issue(&id, &ann).ok(201).await;
    let expected = json!({"coupon_id": issued["coupon_id"], "template_id": id, "user_id": ann, "serial": 1,
        "discount": {"type": "amount", "value": 1_000}, "min_subtotal": 0, "status": "available", "issued_at": issued["issued_at"], "expires_at": issued["expires_at"]});
    assert_eq!(issued, expected);
    assert_now(&issued, "issued_at");
    let usable = time(&issued, "expires_at").duration_since(time(&issued, "issued_at"));
    assert_eq!(usable, jiff::SignedDuration::from_hours(365 * 24));
    assert_eq!(text(&issued, "coupon_id").parse::<uuid::Uuid>().unwrap().get_version_num(), 7);

    let again = api.issue(&id, &ann).refused(409, "already-issued").await;
    assert_eq!(again["coupon_id"], issued["coupon_id"]);
    assert_eq!(api.issue(&id, &bob).ok(201).await["serial"], 2);
    api.issue(&id, &fresh("carol")).refused(409, "sold-out").await;
    let template = api.get(&format!("/v1/coupon-templates/{id}")).ok(200).await;
    assert_eq!(
        (&template["issued"], &template["remaining"], &template["state"]),
        (&json!(2), &json!(0), &json!("sold_out"))
    );

    let body = api.get(&format!("/v1/coupon-templates/{id}")).ok(200).await;
    let more = template_body(&body, json!({"max_issued": 3}));
    api.put(&format!("/v1/coupon-templates/{id}"), &more).admin().ok(200).await;
    assert_eq!(
        api.issue(&id, &fresh("dan")).ok(201).await["serial"],
        3,
        "a raised limit counts at once"
    );
}

/// The body from which a template was made, with `changes` applied.
fn template_body(view: &Value, changes: Value) -> Value {
    let mut body = with(view.clone(), changes);
    for computed in ["id", "issued", "remaining", "state"] {
        body.as_object_mut().unwrap().remove(computed);
    }
    body
}

#[tokio::test]
async fn coupons_are_issued_only_in_their_window() {
    let api = Api::shared().await;
    let user = fresh("user");
    let window = |from: &str, until: &str| json!({"issue_from": from, "issue_until": until});
    let early = api.template(window("2990-01-01T00:00:00Z", "2999-01-01T00:00:00Z")).await;
    let problem = api.issue(&early, &user).refused(409, "issuance-not-open").await;
    assert_eq!(problem["issue_from"], "2990-01-01T00:00:00.000Z");
    let late = api.template(window("2020-01-01T00:00:00Z", "2020-01-02T00:00:00Z")).await;
    let problem = api.issue(&late, &user).refused(409, "issuance-closed").await;
    assert_eq!(problem["issue_until"], "2020-01-02T00:00:00.000Z");
    api.issue(&fresh("nothing"), &user).refused(404, "coupon-template-not-found").await;
    api.get(&format!("/v1/coupon-templates/{}", fresh("nothing")))
        .refused(404, "coupon-template-not-found")
        .await;
}

#[tokio::test]
async fn a_user_sees_the_coupons_newest_first_and_by_status() {
    let api = Api::shared().await;
    let (user, mug) = (api.user(100_000).await, api.product(10_000, 5).await);
    let mut ids = Vec::new();
    for _ in 0..3 {
        let template =
            api.template(json!({"discount": {"type": "percent", "value": 5, "max": 900}})).await;
        ids.insert(0, json!(api.coupon(&template, &user).await));
    }
    let path = format!("/v1/users/{user}/coupons");
    let list = api.get(&path).user(&user).ok(200).await;
    assert_eq!(column(&list, "coupon_id"), ids.iter().collect::<Vec<_>>());
    let first = &list["data"][0];
    let expected = json!({"coupon_id": ids[0], "template_id": first["template_id"], "name": "A template",
        "serial": 1, "discount": {"type": "percent", "value": 5, "max": 900}, "min_subtotal": 0, "status": "available",
        "issued_at": first["issued_at"], "expires_at": first["expires_at"]});
    assert_eq!(*first, expected);
    assert_now(first, "issued_at");
    assert_eq!(json!(pages(&api, &path, 2).await), list["data"]);

    let order = api.order(&user, &[(&mug, 1)], json!({"coupon_id": ids[1]})).ok(201).await;
    let by_status =
        async |status: &str| api.get(&format!("{path}?status={status}")).user(&user).ok(200).await;
    let used = by_status("used").await;
    assert_eq!(column(&used, "coupon_id"), [&ids[1]]);
    assert_eq!(
        (&used["data"][0]["status"], &used["data"][0]["order_id"]),
        (&json!("used"), &order["order_id"])
    );
    assert_eq!(column(&by_status("available").await, "coupon_id"), [&ids[0], &ids[2]]);
    assert_eq!(by_status("expired").await["data"], json!([]));
    assert_eq!(
        json!(pages(&api, &format!("{path}?status=available"), 1).await).as_array().unwrap().len(),
        2
    );

    api.cancel(&order, &user).ok(200).await;
    let available = by_status("available").await;
    assert_eq!(column(&available, "coupon_id"), ids.iter().collect::<Vec<_>>());
    assert!(available["data"][1].get("order_id").is_none(), "{available}");
}
