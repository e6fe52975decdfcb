//! Who holds the coupons of a template.

use serde_json::json;

use super::*;

fn holders(template: &str) -> String {
    format!("/v1/coupon-templates/{template}/coupons")
}

#[tokio::test]
async fn holders_are_listed_by_serial() {
    let api = Api::shared().await;
    let (template, other) = (api.template(json!({})).await, api.template(json!({})).await);
    let path = holders(&template);
    assert_eq!(api.get(&path).admin().ok(200).await, json!({"data": [], "next": null}));
    let mut expected = Vec::new();
    for serial in 1..=5 {
        let user = fresh("holder");
        let issued = api.issue(&template, &user).ok(201).await;
        api.coupon(&other, &user).await;
        expected.push(json!({"coupon_id": issued["coupon_id"], "user_id": user, "serial": serial,
            "status": "available", "issued_at": issued["issued_at"], "expires_at": issued["expires_at"]}));
        // What was answered is shown at once.
        assert_eq!(api.get(&path).admin().ok(200).await["data"], json!(expected));
    }
    for limit in [1, 2, 5, 100] {
        assert_eq!(pages(&api, &path, limit).await, expected, "{limit}");
    }
    let page = api.get(&format!("{path}?limit=2")).admin().ok(200).await;
    assert_eq!(page["next"], "2");
    let user = text(&expected[0], "user_id");
    let mine = api.get(&format!("/v1/users/{user}/coupons")).user(&user).ok(200).await;
    assert_eq!(column(&mine, "serial"), [1, 1], "lists of coupons show the serial, too");
}

#[tokio::test]
async fn holders_are_found_by_what_their_coupons_are_now() {
    let backend = Backend::new().await;
    let instance = backend.serve_all(&[]).await;
    let api = instance.client();
    let (template, mug) = (api.template(json!({})).await, api.product(2_000, 10).await);
    let path = holders(&template);
    let mut orders = Vec::new();
    for n in 0..6 {
        let user = api.user(10_000).await;
        let coupon = api.coupon(&template, &user).await;
        if n % 2 == 0 {
            let order = api.order(&user, &[(&mug, 1)], json!({"coupon_id": coupon})).ok(201).await;
            orders.push((user, order));
        }
    }
    let serials = async |status: &str| -> Vec<u64> {
        let all = pages(&api, &format!("{path}?status={status}"), 2).await;
        assert!(all.iter().all(|holder| holder["status"] == status), "{all:?}");
        all.iter().map(|holder| holder["serial"].as_u64().unwrap()).collect()
    };
    assert_eq!((serials("used").await, serials("available").await), (vec![1, 3, 5], vec![2, 4, 6]));
    assert_eq!(serials("expired").await, [0_u64; 0]);
    let used = api.get(&format!("{path}?status=used&limit=1")).admin().ok(200).await;
    assert_eq!(used["data"][0]["order_id"], orders[0].1["order_id"]);
    // A cancelled order gives its coupon back.
    let (user, order) = &orders[1];
    api.cancel(order, user).ok(200).await;
    assert_eq!((serials("used").await, serials("available").await), (vec![1, 5], vec![2, 3, 4, 6]));
    backend.set_clock_ahead(Duration::from_secs(366 * 24 * 60 * 60)).await;
    assert_eq!((serials("used").await, serials("available").await), (vec![1, 5], vec![]));
    assert_eq!(serials("expired").await, [2, 3, 4, 6]);
}

#[tokio::test]
async fn holders_are_for_staff_and_of_a_template_that_exists() {
    let api = Api::shared().await;
    let path = holders(&api.template(json!({})).await);
    api.get(&path).refused(401, "unauthenticated").await;
    api.get(&path).user("ann").refused(403, "forbidden").await;
    api.get(&path).service().refused(403, "forbidden").await;
    let nothing = fresh("nothing");
    let problem =
        api.get(&holders(&nothing)).admin().refused(404, "coupon-template-not-found").await;
    assert_eq!(problem["template_id"], nothing);
    for (bad, field) in [
        ("status=lost", "status"),
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("after=-1", "after"),
        ("after=x", "after"),
        ("after=99999999999999999999", "after"),
        ("user_id=u", "user_id"),
    ] {
        assert_eq!(api.get(&format!("{path}?{bad}")).admin().refused_field().await, field, "{bad}");
    }
    let last =
        api.get(&format!("{path}?status=used&after=9223372036854775807")).admin().ok(200).await;
    assert_eq!(last, json!({"data": [], "next": null}));
}
