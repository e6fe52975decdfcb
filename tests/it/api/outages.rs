//! Servers that are away, hang or fall behind: requests get 503 with a code that tells which server
//! it is, and service resumes without intervention. The functions that return codes are run by
//! [`super::refusals`].

use fred::interfaces::{ClientLike, HashesInterface};
use rushgate::reconciler::quarantine::Choice;
use rushgate::reconciler::{Reconciler, StepOutcome};
use rushgate_local_servers::{PostgresOptions, PostgresServer};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;

type Codes = BTreeSet<String>;

async fn readiness(instance: &Instance) -> (u16, Value) {
    let answer = reqwest::get(format!("{}/readyz", instance.ops)).await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

pub async fn without_redis() -> Codes {
    let backend = Backend::new().await;
    let instance = backend.serve_all(&[]).await;
    let api = instance.client();
    let (user, mug) = (api.user(5_000).await, api.product(1_000, 5).await);
    let order = api.order(&user, &[(&mug, 1)], json!({})).ok(201).await;
    backend.redis.stop().await;
    // Only the first requests on a connection may notice that it has ended.
    let noticed = async || {
        let answer = api.charge(&user, 1).user(&user).send().await;
        assert!(["gate-unavailable", "outcome-unknown"].contains(&answer.code()), "{answer:?}");
        (answer.code() == "gate-unavailable").then_some(())
    };
    until("decisions are refused", noticed).await;
    for read in [
        api.get(&format!("/v1/products/{mug}")),
        api.get("/v1/products"),
        api.get("/v1/coupon-templates"),
        api.get(&format!("/v1/users/{user}/wallet")).user(&user),
        api.get(&format!("/v1/users/{user}/coupons")).user(&user),
        api.get(&format!("/v1/users/{user}/orders")).user(&user),
        api.get(&format!("/v1/users/{user}/wallet/entries")).user(&user),
        api.get(&format!("/v1/orders/{}", text(&order, "order_id"))).user(&user),
        api.order(&user, &[(&mug, 1)], json!({})),
        api.cancel(&order, &user),
        api.issue("none", &user),
        api.put("/v1/products/new", &json!({"name": "n", "price": 100, "status": "on_sale"}))
            .admin(),
        api.put("/v1/coupon-templates/new", &template(json!({}))).admin(),
        api.post(&format!("/v1/products/{mug}/stock-adjustments"), &json!({"delta": 1})).admin(),
    ] {
        read.refused(503, "gate-unavailable").await;
    }
    let (status, body) = readiness(&instance).await;
    assert!(status == 503 && body["reasons"][0].as_str().unwrap().contains("Redis"), "{body}");
    let status = api.get("/v1/admin/status").admin().ok(200).await;
    assert_eq!(status["connections"], json!({"redis": "unreachable", "postgres": "connected"}));

    backend.redis.restart().await.unwrap();
    instance.wait_until_ready().await;
    assert_eq!(
        (api.balance(&user).await, api.stock(&mug).await),
        (4_000, 4),
        "nothing was changed"
    );
    api.charge(&user, 1).user(&user).ok(201).await;
    backend.assert_audit_clean().await;
    ["gate-unavailable".to_owned()].into()
}

pub async fn while_redis_hangs() -> Codes {
    let backend = Backend::new().await;
    let instance =
        backend.serve_all(&[("RUSHGATE_QUEUE_LIMIT", "1"), ("RUSHGATE_MAX_BATCH", "1")]).await;
    let api = instance.client();
    let user = api.user(0).await;
    backend.redis.pause();
    // One request is in flight and one waits; there is no room for more.
    let charge = |n: u64| {
        let call = api
            .charge(&user, 10_u64.pow(u32::try_from(n).unwrap()))
            .user(&user)
            .key(&n.to_string());
        async move { (n, call.send().await) }
    };
    let answers = futures::future::join_all((0..5).map(charge)).await;
    let count = |code: &str| answers.iter().filter(|(_, answer)| answer.code() == code).count();
    assert!(count("overloaded") >= 3 && count("outcome-unknown") >= 1, "{answers:?}");
    assert_eq!(readiness(&instance).await.0, 503);
    backend.redis.resume();
    instance.wait_until_ready().await;
    // With the same keys, each charge takes effect once: either now or before.
    for n in 0..5 {
        let amount = 10_u64.pow(u32::try_from(n).unwrap());
        let charge = api.charge(&user, amount).user(&user).key(&n.to_string()).send().await;
        assert_eq!((charge.status, &charge.body["amount"]), (201, &json!(amount)), "{charge:?}");
        let was_overloaded =
            answers.iter().any(|(other, answer)| *other == n && answer.code() == "overloaded");
        assert!(
            !(was_overloaded && charge.replayed()),
            "what was refused had been done: {charge:?}"
        );
    }
    assert_eq!(api.balance(&user).await, 11_111);
    backend.assert_audit_clean().await;
    answers
        .iter()
        .map(|(_, answer)| answer.code().to_owned())
        .filter(|code| !code.is_empty())
        .collect()
}

pub async fn without_postgres() -> Codes {
    let postgres = PostgresServer::start(PostgresOptions::new(DataFolder::Scratch)).await.unwrap();
    let redis = RedisServer::start(RedisOptions::new(DataFolder::Scratch)).await.unwrap();
    let backend = Backend { redis, database_url: postgres.create_database("shop").await.unwrap() };
    let instance = backend.serve_all(&[("RUSHGATE_TRUTH_TIMEOUT_MS", "500")]).await;
    let api = instance.client();
    let (user, mug) = (api.user(5_000).await, api.product(1_000, 5).await);
    let order = api.order(&user, &[(&mug, 1)], json!({})).ok(201).await;
    api.get(&format!("/v1/orders/{}", text(&order, "order_id"))).user(&user).ok(200).await;
    let template = api.template(json!({})).await;
    for hangs in [true, false] {
        if hangs {
            postgres.pause()
        } else {
            postgres.stop().await
        }
        for (n, needs_it) in [
            api.get(&format!("/v1/orders/{}", text(&order, "order_id"))).user(&user),
            api.get(&format!("/v1/users/{user}/orders")).user(&user),
            api.get(&format!("/v1/users/{user}/wallet/entries")).user(&user),
            api.get("/v1/orders").service(),
            api.get(&format!("/v1/coupon-templates/{template}/coupons")).admin(),
            api.get("/v1/products/popular"),
            api.call("POST", "/v1/products/popular/refresh").admin(),
            api.cancel(&order, &user),
        ]
        .into_iter()
        .enumerate()
        {
            let started = Instant::now();
            needs_it.refused(503, "truth-unavailable").await;
            assert!(
                started.elapsed() < Duration::from_secs(5),
                "request {n} took {:?}",
                started.elapsed()
            );
        }
        let balance = api.charge(&user, 1).user(&user).ok(201).await["balance"].clone();
        assert_eq!(api.balance(&user).await, balance, "the gate decides without it");
        let (status, body) = readiness(&instance).await;
        assert!(
            status == 200 && body["warnings"][0].as_str().unwrap().contains("PostgreSQL"),
            "{body}"
        );
        let status = api.get("/v1/admin/status").admin().ok(200).await;
        assert_eq!(
            (&status["connections"]["postgres"], &status["outbox_length"]),
            (&json!("unreachable"), &Value::Null)
        );
        if hangs {
            postgres.resume()
        } else {
            postgres.restart().await.unwrap()
        }
        until("PostgreSQL has all", async || {
            let answer = api
                .get(&format!("/v1/users/{user}/wallet/entries?limit=1"))
                .user(&user)
                .send()
                .await;
            assert!(answer.status == 200 || answer.code() == "truth-unavailable", "{answer:?}");
            (answer.status == 200).then(|| assert_eq!(answer.body["data"][0]["balance"], balance))
        })
        .await;
    }
    backend.assert_audit_clean().await;
    ["truth-unavailable".to_owned()].into()
}

pub async fn while_postgres_is_behind() -> Codes {
    let backend = Backend::new().await;
    let mut reconciler = backend.open_gate().await;
    let instance = backend
        .serve_all(&[
            ("RUSHGATE_ROLES", "api"),
            ("RUSHGATE_LOG_LIMIT", "2"),
            ("RUSHGATE_TRUTH_TIMEOUT_MS", "200"),
        ])
        .await;
    let api = instance.client();
    let user = fresh("user");
    for _ in 0..2 {
        api.charge(&user, 5).user(&user).ok(201).await;
    }
    api.charge(&user, 5).user(&user).refused(503, "backlog-full").await;
    assert_eq!(api.balance(&user).await, 10);
    let entries = || api.get(&format!("/v1/users/{user}/wallet/entries")).user(&user);
    entries().refused(503, "truth-unavailable").await;
    // No scheduler has made a list.
    api.get("/v1/products/popular").refused(503, "truth-unavailable").await;
    apply_all(&mut reconciler).await;
    assert_eq!(column(&entries().ok(200).await, "balance"), [10, 5]);
    api.charge(&user, 5).user(&user).ok(201).await;
    apply_all(&mut reconciler).await;
    backend.assert_audit_clean().await;
    ["backlog-full".to_owned(), "truth-unavailable".to_owned()].into()
}

async fn apply_all(reconciler: &mut Reconciler) {
    while let StepOutcome::Applied(_) = reconciler.step().await.unwrap() {}
}

pub async fn a_year_later() -> Codes {
    let backend = Backend::new().await;
    let instance = backend.serve_all(&[]).await;
    let api = instance.client();
    let (user, mug) = (api.user(5_000).await, api.product(1_000, 5).await);
    let coupon = api.coupon(&api.template(json!({})).await, &user).await;
    let held = api.order(&user, &[(&mug, 1)], json!({"payment": "external"})).ok(201).await;
    let raw = rushgate::redis::connect(&backend.redis.url()).await.unwrap();
    let later = jiff::Timestamp::now().as_millisecond() + 366 * 24 * 60 * 60 * 1_000;
    let _: i64 = raw.hset(rushgate::redis::keys::Keys::meta(0), ("clock", later)).await.unwrap();
    let answer = api.order(&user, &[(&mug, 1)], json!({"coupon_id": coupon})).send().await;
    let path = format!("/v1/orders/{}/confirm", text(&held, "order_id"));
    let late = api.post(&path, &json!({"payment_reference": "card"})).service().send().await;
    [answer.code().to_owned(), late.code().to_owned()].into()
}

pub async fn a_body_that_does_not_come(api: &Api) -> Codes {
    let mut stream = TcpStream::connect(api.base.trim_start_matches("http://")).await.unwrap();
    let head = format!(
        "POST /v1/users/u/wallet/charges HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\
         content-type: application/json\r\ncontent-length: 12\r\nconnection: close\r\n\r\n{{",
        token("u", "shop")
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer))
        .await
        .expect("an answer")
        .unwrap();
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    let problem: Value = serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    [text(&problem, "code")].into()
}

/// Reads wait for a table lock. Before they get it, PostgreSQL goes back by one entry, as if a
/// backup had been restored.
#[tokio::test]
async fn a_truth_that_goes_back_while_it_is_read_is_not_believed() {
    let backend = Backend::new().await;
    let roles = ("RUSHGATE_ROLES", "api,reconciler"); // the scheduler reads orders too
    let instance = backend.serve_all(&[roles, ("RUSHGATE_TRUTH_TIMEOUT_MS", "20000")]).await;
    let api = instance.client();
    let (user, mug) = (api.user(5_000).await, api.product(1_000, 5).await);
    let order = api.order(&user, &[(&mug, 1)], json!({})).ok(201).await;
    let one = format!("/v1/orders/{}", text(&order, "order_id"));
    api.get(&one).user(&user).ok(200).await;

    let pool = sqlx::PgPool::connect(&backend.database_url).await.unwrap();
    let mut restoring = pool.begin().await.unwrap();
    let lock = "LOCK TABLE orders, wallet_entries IN ACCESS EXCLUSIVE MODE";
    sqlx::query(lock).execute(&mut *restoring).await.unwrap();
    let reads = [
        api.get(&one).user(&user),
        api.get(&format!("/v1/users/{user}/orders")).user(&user),
        api.get(&format!("/v1/users/{user}/wallet/entries")).user(&user),
        api.cancel(&order, &user),
    ];
    let refused =
        futures::future::join_all(reads.map(|read| read.refused(503, "truth-unavailable")));
    let restore = async {
        until("all of them wait for the tables", async || {
            let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted \
                           AND relation IN ('orders'::regclass, 'wallet_entries'::regclass)";
            let waiting: i64 = sqlx::query_scalar(waiting).fetch_one(&pool).await.unwrap();
            (waiting == 4).then_some(())
        })
        .await;
        let back = "UPDATE cell_cursors SET seq = seq - 1";
        sqlx::query(back).execute(&mut *restoring).await.unwrap();
        restoring.commit().await.unwrap();
    };
    futures::join!(refused, restore);
}

#[tokio::test]
async fn before_the_gate_is_built_everything_is_refused_for_now() {
    let backend = Backend::new().await;
    let instance = backend.serve(&[("RUSHGATE_ROLES", "api")]).await;
    let api = instance.client();
    api.get("/v1/products").refused(503, "gate-unavailable").await;
    api.charge("ann", 5).user("ann").refused(503, "gate-unavailable").await;
    let (status, body) = readiness(&instance).await;
    assert_eq!((status, &body["ready"]), (503, &json!(false)), "{body}");
    let cells = api.get("/v1/admin/status").admin().ok(200).await["cells"].clone();
    assert_eq!(cells[0]["state"], "closed");
    backend.open_gate().await;
    instance.wait_until_ready().await;
    api.charge("ann", 5).user("ann").ok(201).await;
}

#[tokio::test]
async fn an_emptied_redis_is_filled_again_and_keys_still_answer() {
    let backend = Backend::new().await;
    let instance = backend.serve_all(&[]).await;
    let api = instance.client();
    let (user, mug) = (api.user(50_000).await, api.product(1_000, 5).await);
    let template = api.template(json!({})).await;
    let charge = || api.charge(&user, 500).user(&user).key("charge");
    let issue = || api.issue(&template, &user).key("issue");
    let (charged, issued) = (charge().ok(201).await, issue().ok(201).await);
    let coupon = text(&issued, "coupon_id");
    let order = || api.order(&user, &[(&mug, 2)], json!({"coupon_id": coupon})).key("order");
    let ordered = order().ok(201).await;
    let kept = api.order(&user, &[(&mug, 1)], json!({})).ok(201).await;
    let cancel = || api.cancel(&ordered, &user).key("cancel");
    let cancelled = cancel().ok(200).await;
    let adjust = || {
        api.post(&format!("/v1/products/{mug}/stock-adjustments"), &json!({"delta": 7}))
            .admin()
            .key("adjust")
    };
    let adjusted = adjust().ok(201).await;
    let paths = [
        format!("/v1/users/{user}/wallet"),
        format!("/v1/users/{user}/wallet/entries"),
        format!("/v1/users/{user}/coupons"),
        format!("/v1/users/{user}/orders"),
        format!("/v1/products/{mug}"),
        format!("/v1/coupon-templates/{template}"),
    ];
    let state = async || {
        let mut all = Vec::new();
        for path in &paths {
            all.push(api.get(path).admin().ok(200).await);
        }
        all
    };
    let before = state().await; // PostgreSQL has everything now
    let raw = rushgate::redis::connect(&backend.redis.url()).await.unwrap();
    let _: () = raw.flushall(false).await.unwrap();
    until("the gate is built again", async || {
        let cell = api.get("/v1/admin/status").admin().ok(200).await["cells"][0].clone();
        (cell["epoch"] == 2 && cell["state"] == "open").then_some(())
    })
    .await;
    assert_eq!(state().await, before);
    for (again, first) in [
        (charge(), &charged),
        (issue(), &issued),
        (order(), &ordered),
        (cancel(), &cancelled),
        (adjust(), &adjusted),
    ] {
        let again = again.send().await;
        assert!(again.replayed() && again.body == *first, "{again:?}");
    }
    api.charge(&user, 501).user(&user).key("charge").refused(422, "idempotency-key-reused").await;
    api.issue(&template, &user).refused(409, "already-issued").await;
    assert_eq!(api.cancel(&ordered, &user).ok(200).await, cancelled);
    assert_eq!(state().await, before, "repeats change nothing");
    assert_eq!(api.cancel(&kept, &user).ok(200).await["balance"], 50_500);
    backend.assert_audit_clean().await;
}

#[tokio::test]
async fn with_ack_truth_a_success_is_in_postgresql() {
    let backend = Backend::new().await;
    let instance = backend
        .serve_all(&[("RUSHGATE_ACK", "truth"), ("RUSHGATE_TRUTH_TIMEOUT_MS", "30000")])
        .await;
    let api = instance.client();
    let pool = sqlx::PgPool::connect(&backend.database_url).await.unwrap();
    let (user, mug) = (api.user(50_000).await, api.product(1_000, 50).await);
    let count = async |sql: &'static str, id: &Value| -> i64 {
        sqlx::query_scalar(sql).bind(id.as_str()).fetch_one(&pool).await.unwrap()
    };
    for _ in 0..10 {
        let order = api.order(&user, &[(&mug, 1)], json!({})).ok(201).await;
        let id = &order["order_id"];
        assert_eq!(
            count("SELECT count(*) FROM orders WHERE order_id = $1::uuid AND status = 'paid'", id)
                .await,
            1
        );
        api.cancel(&order, &user).ok(200).await;
        assert_eq!(
            count(
                "SELECT count(*) FROM orders WHERE order_id = $1::uuid AND status = 'cancelled'",
                id
            )
            .await,
            1
        );
        let coupon = api.issue(&api.template(json!({})).await, &user).ok(201).await;
        assert_eq!(
            count("SELECT count(*) FROM coupons WHERE coupon_id = $1::uuid", &coupon["coupon_id"])
                .await,
            1
        );
        let charge = api.charge(&user, 1).user(&user).ok(201).await;
        assert_eq!(
            count(
                "SELECT count(*) FROM wallet_entries WHERE ref_id = $1::uuid",
                &charge["charge_id"]
            )
            .await,
            1
        );
    }
}

/// An instance that waits only briefly for PostgreSQL and does not follow the log itself.
async fn serve_impatiently(backend: &Backend) -> Instance {
    let settings = [
        ("RUSHGATE_ROLES", "api"),
        ("RUSHGATE_ACK", "truth"),
        ("RUSHGATE_TRUTH_TIMEOUT_MS", "200"),
    ];
    backend.serve_all(&settings).await
}

#[tokio::test]
async fn with_ack_truth_what_postgresql_does_not_have_yet_is_answered_with_its_ids() {
    let backend = Backend::new().await;
    let mut reconciler = backend.open_gate().await;
    let instance = serve_impatiently(&backend).await;
    let api = instance.client();
    let accepted = async |call: Call, id: &str| {
        let body = call.ok(202).await;
        assert_eq!(
            (members(&body), &body["status"]),
            (BTreeSet::from([id, "status"]), &json!("accepted"))
        );
        text(&body, id)
    };
    let product = json!({"name": "Mug", "price": 1_000, "status": "on_sale", "stock": 5});
    assert_eq!(accepted(api.put("/v1/products/mug", &product).admin(), "product_id").await, "mug");
    let put = api.put("/v1/coupon-templates/welcome", &template(json!({}))).admin();
    assert_eq!(accepted(put, "template_id").await, "welcome");
    let adjust = api.post("/v1/products/mug/stock-adjustments", &json!({"delta": 1})).admin();
    assert_eq!(accepted(adjust, "product_id").await, "mug");
    accepted(api.charge("ann", 5_000).user("ann"), "charge_id").await;
    let coupon = accepted(api.issue("welcome", "ann"), "coupon_id").await;
    let order = || api.order("ann", &[("mug", 3)], json!({"coupon_id": coupon})).key("one");
    let order_id = accepted(order(), "order_id").await;
    let again = order().send().await;
    assert_eq!(
        (again.status, again.replayed(), &again.body["order_id"]),
        (202, true, &json!(order_id))
    );
    assert_eq!(
        (api.balance("ann").await, api.stock("mug").await),
        (3_000, 3),
        "decided all the same"
    );

    apply_all(&mut reconciler).await;
    let read = api.get(&format!("/v1/orders/{order_id}")).user("ann").ok(200).await;
    let again = order().send().await;
    assert_eq!((again.status, again.replayed(), &again.body), (201, true, &read));
    let cancel = api.call("POST", &format!("/v1/orders/{order_id}/cancel")).user("ann");
    assert_eq!(accepted(cancel, "order_id").await, order_id);
    apply_all(&mut reconciler).await;
    backend.assert_audit_clean().await;
}

#[tokio::test]
async fn with_ack_truth_a_skipped_fact_is_never_a_success() {
    let backend = Backend::new().await;
    let mut reconciler = backend.open_gate().await;
    let instance = serve_impatiently(&backend).await;
    let api = instance.client();
    let pool = sqlx::PgPool::connect(&backend.database_url).await.unwrap();
    let planted = "ALTER TABLE wallet_entries ADD CONSTRAINT planted CHECK (amount <> 777)";
    sqlx::query(planted).execute(&pool).await.unwrap();
    let charge = || api.charge("ann", 777).user("ann").key("one");
    let first = charge().ok(202).await;
    assert!(matches!(reconciler.step().await.unwrap(), StepOutcome::Halted(_)));
    assert_eq!(reconciler.skip(1, Choice::One(1), "planted by a test").await.unwrap(), 1);
    // PostgreSQL is past the entry but does not have it, and the gate no longer knows the key.
    sqlx::query("ALTER TABLE wallet_entries DROP CONSTRAINT planted").execute(&pool).await.unwrap();
    let anew = charge().ok(202).await;
    assert_ne!(anew["charge_id"], first["charge_id"]);
    apply_all(&mut reconciler).await;
    let again = charge().send().await;
    assert_eq!((again.status, again.replayed(), &again.body["balance"]), (201, true, &json!(777)));
    backend.assert_audit_clean().await;
}

#[tokio::test]
async fn with_ack_truth_a_coupon_that_only_the_gate_knows_is_not_told_of() {
    let backend = Backend::new().await;
    let mut reconciler = backend.open_gate().await;
    let instance = serve_impatiently(&backend).await;
    let api = instance.client();
    let put = api.put("/v1/coupon-templates/welcome", &template(json!({}))).admin();
    put.ok(202).await;
    let issued = api.issue("welcome", "ann").ok(202).await;
    // Clients treat `already-issued` as a success.
    api.issue("welcome", "ann").refused(503, "truth-unavailable").await;
    apply_all(&mut reconciler).await;
    let refused = api.issue("welcome", "ann").refused(409, "already-issued").await;
    assert_eq!(refused["coupon_id"], issued["coupon_id"]);
}

/// A read does not wait longer than the request timeout, even if Redis takes longer.
#[tokio::test]
async fn a_read_obeys_the_requests_time_limit() {
    let backend = Backend::new().await;
    let instance = backend.serve_all(&[("RUSHGATE_REQUEST_TIMEOUT_MS", "200")]).await;
    let api = instance.client();
    let id = api.product(100, 1).await;
    let raw = rushgate::redis::connect(&backend.redis.url()).await.unwrap();
    let pause = fred::types::CustomCommand::new_static("CLIENT", None, false);
    let _: () = raw.custom(pause, vec!["PAUSE", "30000", "ALL"]).await.unwrap();
    let asked = Instant::now();
    api.get(&format!("/v1/products/{id}")).refused(503, "gate-unavailable").await;
    // The timeout of a Redis command is 2.5 s.
    assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
}
