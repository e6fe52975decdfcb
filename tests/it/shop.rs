//! A shop for tests: a private Redis and database, with a gate and a reconciler that the test
//! drives.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fred::prelude::*;
use rushgate::audit;
use rushgate::config::{Durability, FenceMode, Servers};
use rushgate::domain::fact::*;
use rushgate::domain::order::merge_lines;
use rushgate::domain::*;
use rushgate::gate::*;
use rushgate::reconciler::{Reconciler, StepOutcome};
use rushgate::redis::keys::Keys;
use rushgate::redis::meta::Meta;
use rushgate_local_servers::{DataFolder, RedisOptions, RedisServer};
use sqlx::PgPool;
use uuid::Uuid;

use crate::truth;

pub const LIMITS: BatchLimits = BatchLimits {
    queue: 10_000,
    batch: 128,
    log: 100_000,
    keys: 10_000,
    read: Duration::from_secs(3),
};

pub struct Shop {
    redis: RedisServer,
    /// A plain connection, for inspecting and damaging keys.
    pub raw: Client,
    pub pool: PgPool,
    pub servers: Servers,
    pub gate: Arc<Gate>,
    pub reconciler: Reconciler,
}

pub fn user(id: &str) -> UserId {
    UserId::parse(id).unwrap()
}
pub fn product(id: &str) -> ProductId {
    ProductId::parse(id).unwrap()
}
pub fn template(id: &str) -> TemplateId {
    TemplateId::parse(id).unwrap()
}
pub fn soon() -> Instant {
    Instant::now() + Duration::from_secs(5)
}
pub fn key(user_id: &str, key: &str) -> Option<IdempotencyKey> {
    Some(IdempotencyKey { user: user(user_id), key: key.to_owned() })
}
pub fn lines(wanted: &[(&str, u64)]) -> Vec<Line> {
    merge_lines(
        wanted.iter().map(|(id, n)| Line { product_id: product(id), quantity: *n }).collect(),
    )
    .unwrap()
}
pub fn order(user_id: &str, wanted: &[(&str, u64)], coupon_id: Option<Uuid>) -> PlaceOrder {
    PlaceOrder {
        user_id: user(user_id),
        lines: lines(wanted),
        coupon_id,
        expected_total: None,
        reference: None,
        outside: None,
    }
}
/// A product on sale, without rules; created with stock 0.
pub fn plain_product(id: &str, price: u64) -> PutProduct {
    PutProduct {
        product_id: product(id),
        name: format!("Product {id}"),
        price,
        status: ProductStatus::OnSale,
        stock: None,
        rules: SaleRules::default(),
    }
}

/// The limits that the lines of an order count for.
fn limit_numbers(placed: &OrderPlaced) -> Vec<Option<u64>> {
    let counts = placed.more.as_ref().map_or(&[][..], |more| &more.counts);
    let of = |line| counts.iter().find(|it| it.line == line).map(|it| it.limit_number);
    (0..placed.lines.len() as u64).map(of).collect()
}

/// A template whose window is open now, with a discount of 1,000 won.
pub fn open_template(id: &str, max_issued: u64) -> PutTemplate {
    let now = jiff::Timestamp::now().as_millisecond();
    PutTemplate {
        template_id: template(id),
        name: format!("Template {id}"),
        discount: Discount::Amount { value: 1_000 },
        min_subtotal: 0,
        max_issued,
        issue_from: now - 3_600_000,
        issue_until: now + 3_600_000,
    }
}

impl Shop {
    /// An empty shop, open in epoch 1.
    pub async fn open() -> Self {
        Self::with_limits(LIMITS).await
    }

    pub async fn with_limits(limits: BatchLimits) -> Self {
        Self::on(RedisOptions::new(DataFolder::Scratch), limits).await
    }

    /// The same with a Redis that runs under this command; see [`RedisOptions::under`].
    pub async fn under(command: Vec<std::ffi::OsString>) -> Self {
        let mut options = RedisOptions::new(DataFolder::Scratch);
        options.under = command;
        Self::on(options, LIMITS).await
    }

    async fn on(redis: RedisOptions, limits: BatchLimits) -> Self {
        let _ = tracing_subscriber::fmt()
            .with_env_filter("rushgate=info")
            .with_test_writer()
            .try_init();
        let redis = RedisServer::start(redis).await.unwrap();
        let pool = truth::database().await;
        let database: String =
            sqlx::query_scalar("SELECT current_database()").fetch_one(&pool).await.unwrap();
        let servers = Servers {
            redis_url: redis.url(),
            database_url: truth::database_url(&database).await,
            amqp_url: String::new(),
            cells: 1,
            durability: Durability::Strict,
            fence: FenceMode::Available,
        };
        let gate = Gate::with_limits(&servers, limits).await.unwrap();
        let mut reconciler = Reconciler::connect(&servers, 0).await.unwrap();
        assert!(reconciler.try_lead().await.unwrap());
        assert_eq!(reconciler.step().await.unwrap(), StepOutcome::Rebuilt(1));
        let raw = rushgate::redis::connect(&servers.redis_url).await.unwrap();
        Self { redis, raw, pool, servers, gate, reconciler }
    }

    pub fn redis_port(&self) -> u16 {
        self.redis.port()
    }

    pub async fn restart_redis(&self) {
        self.redis.kill().await;
        self.redis.restart().await.unwrap();
    }

    pub async fn meta(&self) -> Meta {
        Meta::read(&self.raw, 0).await.unwrap()
    }

    pub async fn keys(&self) -> Keys {
        Keys::new(0, self.meta().await.epoch)
    }

    /// Applies everything in the log.
    pub async fn apply_all(&mut self) {
        loop {
            match self.reconciler.step().await.unwrap() {
                StepOutcome::Idle => return,
                StepOutcome::Applied(_) => {}
                other => panic!("unexpected {other:?}"),
            }
        }
    }

    /// Sets the gate's clock ahead. It stands still until real time has caught up.
    pub async fn set_clock(&self, at_ms: i64) {
        let _: i64 = self.raw.hset(Keys::meta(0), ("clock", at_ms)).await.unwrap();
    }

    pub async fn audit(&self) -> audit::Report {
        let options = audit::Options { wait: Duration::from_secs(5) };
        audit::audit(&self.servers, &self.pool, options).await.unwrap()
    }

    pub async fn assert_audit_clean(&self) {
        let report = self.audit().await;
        assert!(report.clean && report.gate_compared, "{report:#?}");
    }

    /// Rebuilds the gate, under the next epoch.
    pub async fn rebuild(&mut self) {
        let meta = self.meta().await;
        rushgate::redis::meta::close(&self.raw, 0, meta.epoch, "a test").await.unwrap();
        assert_eq!(self.reconciler.step().await.unwrap(), StepOutcome::Rebuilt(meta.epoch + 1));
    }

    pub async fn put_product(&self, id: &str, price: u64, stock: u64) -> ProductPut {
        let request = PutProduct { stock: Some(stock), ..plain_product(id, price) };
        self.gate.put_product(request, soon()).await.unwrap().unwrap().fact
    }

    pub async fn put_template(&self, request: PutTemplate) -> TemplatePut {
        self.gate.put_template(request, soon()).await.unwrap().unwrap().fact
    }

    pub async fn charge(&self, user_id: &str, amount: u64) -> WalletCharged {
        let request = ChargeWallet { user_id: user(user_id), amount };
        self.gate.charge_wallet(request, None, soon()).await.unwrap().unwrap().fact
    }

    pub async fn issue(
        &self,
        template_id: &str,
        user_id: &str,
    ) -> Result<CouponIssued, IssueRefusal> {
        let request = IssueCoupon { template_id: template(template_id), user_id: user(user_id) };
        self.gate.issue_coupon(request, None, soon()).await.unwrap().map(|a| a.fact)
    }

    pub async fn place(&self, request: PlaceOrder) -> Result<OrderPlaced, OrderRefusal> {
        self.gate.place_order(request, None, soon()).await.unwrap().map(|a| a.fact)
    }

    pub async fn cancel(&self, placed: &OrderPlaced) -> Result<OrderCancelled, CancelRefusal> {
        self.gate
            .cancel_order(self.cancellation(placed).await, None, soon())
            .await
            .unwrap()
            .map(|a| a.fact)
    }

    pub async fn cancellation(&self, placed: &OrderPlaced) -> CancelOrder {
        let lines: Vec<(&str, u64)> =
            placed.lines.iter().map(|l| (l.product_id.as_str(), l.quantity)).collect();
        let view = OrderView::from(placed);
        CancelOrder {
            order_id: placed.order_id.0,
            user_id: user(&placed.user_id),
            lines: self::lines(&lines),
            refund: view.wallet_amount(),
            coupon_id: placed.coupon_id.map(|id| id.0),
            limit_numbers: limit_numbers(placed),
            read_in_epoch: self.meta().await.epoch,
            was_pending: view.status == OrderStatus::Pending,
            paid_outside: view.paid_outside(),
        }
    }

    pub async fn balance(&self, user_id: &str) -> Option<u64> {
        self.gate.balance(&user(user_id)).await.unwrap()
    }

    pub async fn stock(&self, product_id: &str) -> u64 {
        self.gate.products(&[product(product_id)]).await.unwrap()[0].stock
    }
}
