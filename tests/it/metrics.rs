//! `/metrics` exposes what the documentation lists, and only current values.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::cluster::{Cluster, Instance, Private, Request, eventually};

/// Name → type and labels.
type Described = BTreeMap<String, (String, BTreeSet<String>)>;

/// Exercises everything that has metrics: all kinds of requests, accepted, refused and replayed.
pub async fn shop_a_little(instance: &Instance, round: usize) {
    let name = |what: &str| format!("{what}-{round}");
    instance.done(&Request::put_product(&name("mug"), 15_000, 5)).await;
    instance.done(&Request::restock(&name("mug"), 2)).await;
    instance.done(&Request::put_template(&name("welcome"), 3)).await;
    for user in 0..5 {
        let user = format!("user-{round}-{user}");
        instance.done(&Request::charge(&user, 100_000).key(&name("charge"))).await;
        instance.done(&Request::charge(&user, 100_000).key(&name("charge"))).await;
        let coupon = instance.send(&Request::issue(&name("welcome"), &user)).await;
        instance.send(&Request::issue(&name("welcome"), &user)).await;
        let order = Request::order(&user, &name("mug"), 2);
        let order =
            if coupon.status == 201 { order.coupon(&coupon.text("coupon_id")) } else { order };
        let ordered = instance.send(&order).await;
        if ordered.status == 201 && user.ends_with('0') {
            instance.done(&Request::cancel(&ordered.text("order_id"))).await;
        }
        instance.done(&Request::get(format!("/v1/users/{user}/wallet"))).await;
    }
    instance.done(&Request::restock(&name("mug"), 1)).await;
    let items = json!([{ "product_id": name("mug"), "quantity": 1 }]);
    let order = json!({ "user_id": name("card"), "items": items, "payment": "external" });
    let held = instance.done(&Request::post("/v1/orders", order)).await;
    let confirm = format!("/v1/orders/{}/confirm", held["order_id"].as_str().unwrap());
    let payment = json!({ "payment_reference": name("payment") });
    instance.done(&Request::post(confirm, payment)).await;
    instance.done(&Request::get("/v1/products")).await;
    instance.send(&Request::get("/v1/orders/no-uuid")).await;
    instance.send(&Request::get("/v1/products").token("forged")).await;
    instance.send(&Request::charge("nobody", 100).token("forged")).await;
}

#[tokio::test]
async fn metrics_are_those_that_the_documentation_lists() {
    let cluster = Cluster::servers().await;
    let instance = cluster.start().await;
    shop_a_little(&instance, 0).await;
    let documented = documented();
    assert!(documented.len() >= 50, "{documented:#?}");
    // Some are sampled every few seconds only.
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut seen = Described::new();
    while seen != documented && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(100)).await;
        seen = exposed(&instance.ops("/metrics").await.1);
    }
    assert_eq!(seen, documented);
}

#[tokio::test]
async fn lag_grows_with_time_and_what_cannot_be_seen_has_no_figure() {
    let cluster = Cluster::with(Private { postgres: true, ..Default::default() }).await;
    let instance = cluster.start().await;
    let figure = async |series: &str| figure(&instance.ops("/metrics").await.1, series);
    let becomes = async |series: &str, wanted: fn(Option<f64>) -> bool| {
        eventually(series, || async { wanted(figure(series).await).then_some(()) }).await;
    };
    becomes(r#"rushgate_cell_state{cell="0",state="open"}"#, |it| it == Some(1.0)).await;
    becomes(r#"rushgate_connected{server="postgres"}"#, |it| it == Some(1.0)).await;

    cluster.postgres.as_ref().unwrap().pause();
    instance.done(&Request::charge("ann", 100)).await;
    becomes(r#"rushgate_log_lag_entries{cell="0"}"#, |it| it == Some(1.0)).await;
    becomes(r#"rushgate_log_lag_seconds{cell="0"}"#, |it| it.is_some_and(|secs| secs > 4.0)).await;
    becomes(r#"rushgate_connected{server="postgres"}"#, |it| it == Some(0.0)).await;
    becomes("rushgate_outbox_rows", |it| it.is_none()).await;
    cluster.postgres.as_ref().unwrap().resume();
    becomes(r#"rushgate_log_lag_seconds{cell="0"}"#, |it| it == Some(0.0)).await;
    becomes("rushgate_outbox_rows", |it| it.is_some()).await;

    cluster.redis.stop().await;
    becomes(r#"rushgate_connected{server="redis"}"#, |it| it == Some(0.0)).await;
    becomes(r#"rushgate_log_lag_seconds{cell="0"}"#, |it| it.is_none()).await;
    becomes(r#"rushgate_cell_state{cell="0",state="open"}"#, |it| it.is_none()).await;
}

/// The table in docs/operations.md.
fn documented() -> Described {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operations.md");
    let page = std::fs::read_to_string(page).unwrap();
    let kinds = ["counter", "gauge", "histogram"];
    let rows = page.lines().filter(|line| line.starts_with("| `")).filter_map(|line| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [name, kind, labels, _] = cells[..] else { return None };
        let labels =
            labels.split_whitespace().map(|label| label.trim_matches('`').to_owned()).collect();
        kinds
            .contains(&kind)
            .then(|| (name.trim_matches('`').to_owned(), (kind.to_owned(), labels)))
    });
    rows.collect()
}

/// The metrics in a Prometheus text that have series.
fn exposed(text: &str) -> Described {
    let mut described = Described::new();
    for line in text.lines() {
        if let Some((name, kind)) =
            line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            let before = described.insert(name.to_owned(), (kind.to_owned(), BTreeSet::new()));
            assert!(before.is_none(), "{name} is described twice");
        } else if !line.is_empty() && !line.starts_with('#') {
            let series = line.rsplit_once(' ').unwrap().0;
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let family =
                ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
            let family = family.filter(|family| described.contains_key(*family)).unwrap_or(name);
            let labels =
                labels.trim_end_matches('}').split("\",").filter_map(|label| label.split_once('='));
            let labels = labels.map(|(label, _)| label.to_owned()).filter(|label| label != "le");
            described.get_mut(family).unwrap_or_else(|| panic!("{line}")).1.extend(labels);
        }
    }
    described
}

/// The value of a series, named exactly as in the text.
fn figure(text: &str, series: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
}
