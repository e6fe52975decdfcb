//! The gate: atomic scripts in Redis decide each request. The only place that speaks to Redis, with `log/`.
//!
//! [`keys`] describes the state in Redis and its life; `lua/` holds the scripts. A request becomes a MessagePack body
//! (here), waits in its script's queue ([`batcher`]), is decided with others in one call ([`script`]) and comes back as
//! a typed verdict.

mod backlog;
pub mod batch;
mod batcher;
pub mod cell;
pub mod clock;
mod fence;
#[cfg(test)]
mod fuzz;
pub mod held;
pub mod keys;
mod meters;
pub mod observe;
pub mod read;
pub mod redis;
mod refusal;
mod request;
pub mod scan;
pub mod script;
mod sold_out;
mod unsettled;
pub mod write_state;

use bytes::Bytes;
use fred::interfaces::ClientLike;
use opentelemetry::trace::SpanKind;
use serde::de::{DeserializeOwned, Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use batch::FlatLines;
pub use batcher::BatchLimits;
use batcher::Batcher;
use cell::Cell;
use fence::{CellFence, Fence, Watcher};
use meters::LaneMeters;
pub use read::PackedProducts;
pub use redis::RedisSetupError;
pub use refusal::*;
pub use request::*;
use script::Script;
use sold_out::SoldOutMemory;
pub use unsettled::{Made, Suspects, Unsettled};
pub use write_state::WriteRefusal;

use crate::config::{Serve, Servers, bounds};
use crate::domain::limits::{MAX_PAGE, MAX_STOCK};
use crate::domain::{
    CouponStatus, CouponTemplate, Line, Product, ProductId, TemplateId, TimestampMs, UserId,
};
use crate::log::fact::{
    CouponIssued, Idempotency, OrderCancelled, OrderPlaced, ProductPut, StockAdjusted, TemplatePut,
    WalletCharged,
};
use crate::log::wire::{self, Blob, Id, Packed};
use crate::telemetry::trace::Trace;
use crate::thread::OwnThread;

/// One handle for all of an instance's requests; cheap to share.
pub struct Gate {
    cells: Vec<Lanes>,
    sold_out_templates: SoldOutMemory,
    sold_out_products: SoldOutMemory,
    log_limit: u64,
    /// Ends with the gate.
    _fence: Option<AbortOnDropHandle<()>>,
    /// After the cells, which run there. `None`: no cells.
    _thread: Option<OwnThread>,
}

/// A cell with the queues of its scripts.
struct Lanes {
    cell: Arc<Cell>,
    issue_coupon: Batcher,
    charge_wallet: Batcher,
    place_order: Batcher,
    cancel_order: Batcher,
    put_product: Batcher,
    adjust_stock: Batcher,
    put_template: Batcher,
    read: Batcher,
    /// The longest that a read may take, its wait in the queue included.
    read_limit: Duration,
    unsettled: Arc<Unsettled>,
    /// Ends with the gate.
    _watermark: AbortOnDropHandle<()>,
}

impl Lanes {
    fn start(cell: Arc<Cell>, limits: BatchLimits) -> Self {
        let lane = |script: &'static Script, refusals| {
            let meters = Arc::new(LaneMeters::new(script.name, refusals));
            Batcher::start(Arc::clone(&cell), script, limits, meters)
        };
        let follower = Arc::clone(&cell);
        let watermark = tokio::spawn(async move { follower.follow_watermark().await });
        Self {
            issue_coupon: lane(&script::ISSUE_COUPON, IssueRefusal::NAMES),
            charge_wallet: lane(&script::CHARGE_WALLET, ChargeRefusal::NAMES),
            place_order: lane(&script::PLACE_ORDER, OrderRefusal::NAMES),
            cancel_order: lane(&script::CANCEL_ORDER, CancelRefusal::NAMES),
            put_product: lane(&script::PUT_PRODUCT, ProductRefusal::NAMES),
            adjust_stock: lane(&script::ADJUST_STOCK, StockRefusal::NAMES),
            put_template: lane(&script::PUT_TEMPLATE, TemplateRefusal::NAMES),
            read: lane(&script::READ, &[]),
            read_limit: limits.read,
            unsettled: Arc::default(),
            _watermark: AbortOnDropHandle::new(watermark),
            cell,
        }
    }
}

impl Lanes {
    /// A UUIDv7 of the gate's clock, as far as this instance knows it: the ids of two instances are in the order of time
    /// though their own clocks differ.
    async fn new_order_id(&self) -> Id {
        match self.cell.view().await {
            Ok(view) => Id::at(view.now()),
            Err(_) => Id::new(), // nothing will be decided
        }
    }

    /// Remembers a decision until PostgreSQL has it; a repeated one, too, for who heard of it first may be another
    /// instance, or nobody. (It stands before where the log is now.)
    fn note<F, R>(&self, decision: &Decision<F, R>, made: impl FnOnce(&F) -> Made) {
        if let Ok(Ok(Accepted { fact, position, .. })) = decision {
            self.unsettled.note(*position, made(fact));
        }
    }
}

/// What a cell is doing, for operators.
#[derive(Clone, Debug)]
pub struct CellStatus {
    pub cell: u32,
    pub epoch: u64,
    pub seq: u64,
    pub applied: u64,
    /// `open`, `closed`, `rebuilding`, `absent`
    pub state: String,
    pub reason: Option<String>,
    /// PostgreSQL is so far behind that nothing more is decided.
    pub backlog_full: bool,
    /// Redis answers and takes no writes, so nothing is decided.
    pub writes_refused: Option<WriteRefusal>,
    /// … said for people.
    pub writes_refused_why: Option<String>,
}

/// The reason that `lua/claim_epoch.lua` gives for a closed cell.
const REBUILDING: &str = "rebuilding";

/// Positions that PostgreSQL has reached, one per cell.
#[derive(Clone, Debug)]
pub struct CaughtUp(Vec<Position>);

impl CaughtUp {
    pub fn positions(&self) -> &[Position] {
        &self.0
    }

    /// The epoch of the user's cell.
    pub fn epoch_of(&self, user_id: &UserId) -> u64 {
        let cells = u32::try_from(self.0.len()).unwrap_or(1);
        let cell = keys::cell_of(user_id.as_str(), cells);
        self.0.iter().find(|p| p.cell == cell).map_or(0, |p| p.epoch)
    }
}

/// Something read from the gate, and the gate's clock when it was read.
#[derive(Clone, Debug)]
pub struct ReadAt<T> {
    pub value: T,
    pub now: TimestampMs,
}

/// The verdict on one request, as `lua/gate.lua` documents it.
enum Verdict<'a, R> {
    Accepted {
        fact: Packed<'a>,
        replayed: bool,
    },
    Late,
    KeyReused,
    /// As many idempotency records as a user may make today; milliseconds until tomorrow.
    KeysSpent(u64),
    Refused(R),
}

impl<'de: 'a, 'a, R: Deserialize<'de>> Deserialize<'de> for Verdict<'a, R> {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Parts<R>(PhantomData<R>);
        impl<'de, R: Deserialize<'de>> Visitor<'de> for Parts<R> {
            type Value = Verdict<'de, R>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a verdict")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Verdict<'de, R>, A::Error> {
                let missing = || A::Error::custom("a verdict without its details");
                let code: u8 = seq.next_element()?.ok_or_else(missing)?;
                Ok(match code {
                    0 | 1 => {
                        let fact = seq.next_element()?.ok_or_else(missing)?;
                        Verdict::Accepted { fact, replayed: code == 1 }
                    }
                    2 => Verdict::Late,
                    3 => Verdict::KeyReused,
                    4 => Verdict::Refused(seq.next_element()?.ok_or_else(missing)?),
                    6 => Verdict::KeysSpent(seq.next_element()?.ok_or_else(missing)?),
                    other => return Err(A::Error::custom(format!("unknown verdict {other}"))),
                })
            }
        }
        d.deserialize_seq(Parts(PhantomData))
    }
}

impl Gate {
    /// Connects, checks Redis' configuration and starts the queues. Needs a running Redis, not a built gate.
    pub async fn connect(settings: &Serve) -> Result<Arc<Self>, RedisSetupError> {
        let limits = BatchLimits {
            queue: settings.queue_limit as usize,
            batch: settings.max_batch as usize,
            log: settings.log_limit,
            keys: settings.limits.user_keys,
            read: settings.request_timeout(),
        };
        Self::with_limits(&settings.servers, limits).await
    }

    /// See [`Gate::connect`].
    pub async fn with_limits(servers: &Servers, limits: BatchLimits) -> Result<Arc<Self>, RedisSetupError> {
        let thread = OwnThread::start("rushgate-gate", 0)?;
        let (cells, fence) = thread.run(start_cells(servers.clone(), limits)).await??;
        Ok(Arc::new(Self {
            cells,
            _fence: Some(fence),
            sold_out_templates: SoldOutMemory::default(),
            sold_out_products: SoldOutMemory::default(),
            log_limit: limits.log,
            _thread: Some(thread),
        }))
    }

    pub async fn issue_coupon(
        &self,
        request: IssueCoupon,
        key: Option<IdempotencyKey>,
        deadline: Instant,
    ) -> Decision<CouponIssued, IssueRefusal> {
        let template = request.template_id.as_str();
        if key.is_none() && self.sold_out_templates.refuses([template].into_iter()).is_some() {
            self.lanes_of(&request.user_id).issue_coupon.meters.remembered_sold_out();
            return Ok(Err(IssueRefusal::SoldOut));
        }
        let lanes = self.lanes_of(&request.user_id);
        let wanted = (template, request.user_id.as_str());
        let key = key.map(|key| record_key("issue_coupon", &key, &wanted));
        let asked = Instant::now();
        let decision = decide(&lanes.issue_coupon, &(wanted.0, wanted.1, Id::new()), key, deadline).await;
        lanes.note(&decision, |issued: &CouponIssued| Made::Coupon(issued.coupon_id.0));
        match &decision {
            Ok(Err(IssueRefusal::SoldOut)) => self.sold_out_templates.remember(template, asked),
            Ok(Ok(_)) => self.sold_out_templates.forget(template),
            _ => {}
        }
        decision
    }

    pub async fn charge_wallet(
        &self,
        request: ChargeWallet,
        key: Option<IdempotencyKey>,
        deadline: Instant,
    ) -> Decision<WalletCharged, ChargeRefusal> {
        let lanes = self.lanes_of(&request.user_id);
        let wanted = (request.user_id.as_str(), request.amount);
        let key = key.map(|key| record_key("charge_wallet", &key, &wanted));
        let decision = decide(&lanes.charge_wallet, &(wanted.0, wanted.1, Id::new()), key, deadline).await;
        // A charge of 0 is nowhere in the ledger: PostgreSQL cannot be asked for it.
        if request.amount > 0 {
            lanes.note(&decision, |charged: &WalletCharged| Made::Charge {
                charge_id: charged.charge_id.0,
                user_id: charged.user_id.as_str().into(),
            });
        }
        decision
    }

    /// Makes the record of a key for a request that changes nothing else in the gate: from then on the key is that request's.
    /// It is logged as a charge of 0, which every version knows how to apply. `Err`: see [`GateError`]; the time is that of the
    /// first use.
    pub async fn use_key(
        &self,
        key: &IdempotencyKey,
        request: KeyedRequest,
        deadline: Instant,
    ) -> Decision<WalletCharged, ChargeRefusal> {
        let record = request.record(key);
        let body = (key.user.as_str(), 0_u64, Id::new());
        decide(&self.lanes_of(&key.user).charge_wallet, &body, Some(record), deadline).await
    }

    /// `request.lines` must be merged: each product once.
    pub async fn place_order(
        &self,
        request: PlaceOrder,
        key: Option<IdempotencyKey>,
        deadline: Instant,
    ) -> Decision<OrderPlaced, OrderRefusal> {
        let products = || request.lines.iter().map(|line| line.product_id.as_str());
        if key.is_none()
            && let Some(product) = self.sold_out_products.refuses(products())
        {
            self.lanes_of(&request.user_id).place_order.meters.remembered_sold_out();
            return Ok(Err(OrderRefusal::InsufficientStock(product.to_owned(), 0)));
        }
        let lanes = self.lanes_of(&request.user_id);
        let coupon = request.coupon_id.map(Id);
        let user = request.user_id.as_str();
        let key = key.map(|key| {
            let wanted = (user, packed_lines(&request.lines), coupon, request.expected_total);
            record_key("place_order", &key, &wanted)
        });
        // Lists of orders are in the order of their ids.
        let order_id = lanes.new_order_id().await;
        let body = (order_id, user, FlatLines(&request.lines), coupon, request.expected_total);
        let asked = Instant::now();
        let decision =
            decide_traced(&lanes.place_order, order_id, &body, request.lines.len(), key, deadline).await;
        lanes.note(&decision, |placed: &OrderPlaced| Made::Order(placed.order_id.0));
        match &decision {
            Ok(Err(OrderRefusal::InsufficientStock(product, 0))) => {
                self.sold_out_products.remember(product, asked)
            }
            Ok(Err(OrderRefusal::InsufficientStock(product, _))) => self.sold_out_products.forget(product),
            // stock is looked at before everything that is left, so there is some
            Ok(Ok(_) | Err(OrderRefusal::InsufficientBalance(..) | OrderRefusal::PriceChanged(_))) => {
                products().for_each(|product| self.sold_out_products.forget(product))
            }
            _ => {}
        }
        decision
    }

    pub async fn cancel_order(
        &self,
        request: CancelOrder,
        key: Option<IdempotencyKey>,
        deadline: Instant,
    ) -> Decision<OrderCancelled, CancelRefusal> {
        let lanes = self.lanes_of(&request.user_id);
        let lines = FlatLines(&request.lines);
        let order = Id(request.order_id);
        let key = key.map(|key| KeyedRequest::CancelOrder(request.order_id).record(&key));
        let coupon = request.coupon_id.map(Id);
        let body = (order, request.user_id.as_str(), lines, request.refund, coupon, request.read_in_epoch);
        let decision =
            decide_traced(&lanes.cancel_order, order, &body, request.lines.len(), key, deadline).await;
        lanes.note(&decision, |cancelled: &OrderCancelled| Made::Cancellation(cancelled.order_id.0));
        if let Ok(Ok(_)) = &decision {
            request.lines.iter().for_each(|l| self.sold_out_products.forget(l.product_id.as_str()));
        }
        decision
    }

    pub async fn put_product(
        &self,
        request: PutProduct,
        deadline: Instant,
    ) -> Decision<ProductPut, ProductRefusal> {
        let id = request.product_id.as_str();
        let body = (id, &request.name, request.price, request.status, request.stock);
        let lanes = self.shop_lanes();
        let decision = decide(&lanes.put_product, &body, None, deadline).await;
        lanes.note(&decision, |_: &ProductPut| Made::Staff(format!("product {id} put").into()));
        decision
    }

    pub async fn adjust_stock(
        &self,
        request: AdjustStock,
        key: Option<IdempotencyKey>,
        deadline: Instant,
    ) -> Decision<StockAdjusted, StockRefusal> {
        let id = request.product_id.as_str();
        let wanted = (id, request.delta, &request.reason);
        let key = key.map(|key| record_key("adjust_stock", &key, &wanted));
        let body = (id, request.delta, &request.reason, MAX_STOCK);
        let lanes = self.shop_lanes();
        let decision = decide(&lanes.adjust_stock, &body, key, deadline).await;
        let made = |it: &StockAdjusted| Made::Staff(format!("stock of {id} adjusted by {}", it.delta).into());
        lanes.note(&decision, made);
        if let Ok(Ok(_)) = &decision {
            self.sold_out_products.forget(id);
        }
        decision
    }

    pub async fn put_template(
        &self,
        request: PutTemplate,
        deadline: Instant,
    ) -> Decision<TemplatePut, TemplateRefusal> {
        let id = request.template_id.as_str();
        let (discount, min) = (request.discount, request.min_subtotal);
        let terms = (
            &request.name,
            discount.type_name(),
            discount.value(),
            discount.max(),
            min,
            request.max_issued,
            request.issue_from,
            request.issue_until,
        );
        let lanes = self.shop_lanes();
        let decision = decide(&lanes.put_template, &(id, terms), None, deadline).await;
        lanes.note(&decision, |_: &TemplatePut| Made::Staff(format!("coupon template {id} put").into()));
        if let Ok(Ok(_)) = &decision {
            self.sold_out_templates.forget(id);
        }
        decision
    }

    /// What the gate would date a fact by, now.
    pub async fn now(&self) -> Result<TimestampMs, GateError> {
        now(self.shop_lanes()).await
    }

    /// What this instance was told is decided, by cell; Redis is asked whether it still holds that.
    pub async fn unsettled(&self) -> Vec<(u32, Arc<Unsettled>)> {
        for Lanes { cell, .. } in self.cells.iter().filter(|lanes| !lanes.unsettled.is_empty()) {
            let _ = cell.refresh().await; // closes the cell if not; a Redis that does not answer is noticed elsewhere
        }
        self.cells.iter().map(|lanes| (lanes.cell.number, Arc::clone(&lanes.unsettled))).collect()
    }

    /// `None`: a user without a wallet.
    pub async fn balance(&self, user_id: &UserId) -> Result<Option<u64>, GateError> {
        let answer = read(self.lanes_of(user_id), &("balance", user_id.as_str())).await?;
        read::balance(&answer)
    }

    /// In the order of `ids`; unknown ones are left out. At most a page of them.
    pub async fn products(&self, ids: &[ProductId]) -> Result<Vec<Product>, GateError> {
        let ids: Vec<&str> = ids.iter().take(MAX_PAGE).map(ProductId::as_str).collect();
        read::products(&read(self.shop_lanes(), &("products", ids)).await?)
    }

    /// Up to `limit` products with ids above `after`, in the order of their ids.
    pub async fn list_products(
        &self,
        after: Option<&ProductId>,
        limit: usize,
    ) -> Result<Vec<Product>, GateError> {
        self.packed_products(after, limit).await?.unpack()
    }

    /// As [`Self::list_products`], as the gate tells it: equal lists are equal bytes.
    pub async fn packed_products(
        &self,
        after: Option<&ProductId>,
        limit: usize,
    ) -> Result<PackedProducts, GateError> {
        let after = after.map_or("", ProductId::as_str);
        Ok(PackedProducts(read(self.shop_lanes(), &("list_products", after, limit)).await?))
    }

    pub async fn template(&self, id: &TemplateId) -> Result<ReadAt<Option<CouponTemplate>>, GateError> {
        let lanes = self.shop_lanes();
        let answer = read(lanes, &("templates", [id.as_str()])).await?;
        Ok(ReadAt { value: read::templates(&answer)?.pop(), now: now(lanes).await? })
    }

    /// Up to `limit` templates with ids above `after`, in the order of their ids.
    pub async fn list_templates(
        &self,
        after: Option<&TemplateId>,
        limit: usize,
    ) -> Result<ReadAt<Vec<CouponTemplate>>, GateError> {
        let lanes = self.shop_lanes();
        let after = after.map_or("", TemplateId::as_str);
        let answer = read(lanes, &("list_templates", after, limit)).await?;
        Ok(ReadAt { value: read::templates(&answer)?, now: now(lanes).await? })
    }

    /// Up to `limit` coupons of a user that have this status now, newest first, after the one named. `None`: the user does not
    /// hold that one.
    pub async fn held_coupons(
        &self,
        user_id: &UserId,
        status: Option<CouponStatus>,
        limit: usize,
        after: Option<Uuid>,
    ) -> Result<Option<ReadAt<Vec<HeldCoupon>>>, GateError> {
        let (lanes, status) = (self.lanes_of(user_id), status.map_or("", CouponStatus::name));
        let (mut found, mut after) = (Vec::new(), after);
        loop {
            let after_id = after.map_or(Blob(vec![]), |id| Blob(id.as_bytes().to_vec()));
            let wanted = ("held", user_id.as_str(), status, limit - found.len(), after_id);
            let Some(page) = read::held(&read(lanes, &wanted).await?)? else { return Ok(None) };
            found.extend(page.coupons);
            match page.go_on_after {
                Some(last) if found.len() < limit => after = Some(last),
                _ => return Ok(Some(ReadAt { value: found, now: page.now })),
            }
        }
    }

    /// Waits until PostgreSQL has everything that the gate has decided up to now.
    pub async fn catch_up(&self, deadline: Instant) -> Result<CaughtUp, NotApplied> {
        let mut positions = Vec::with_capacity(self.cells.len());
        for lanes in &self.cells {
            let (_, position) = ask_read(lanes, &("place",)).await?;
            lanes.cell.wait_applied(position, deadline).await?;
            positions.push(position);
        }
        Ok(CaughtUp(positions))
    }

    /// Waits until PostgreSQL has applied the log up to `position`.
    pub async fn wait_applied(&self, position: Position, deadline: Instant) -> Result<(), NotApplied> {
        match self.cells.iter().find(|lanes| lanes.cell.number == position.cell) {
            Some(lanes) => lanes.cell.wait_applied(position, deadline).await,
            None => Err(GateError::Unavailable(format!("there is no cell {}", position.cell)).into()),
        }
    }

    /// For /readyz and /v1/admin/status.
    pub async fn status(&self) -> Result<Vec<CellStatus>, GateError> {
        let mut all = Vec::with_capacity(self.cells.len());
        for Lanes { cell, .. } in &self.cells {
            // On both connections: after Redis was away, one may be back before the other.
            let read = |client| cell::Meta::read(client, cell.number);
            let (meta, _) = futures::try_join!(read(&cell.reader), read(&cell.writer.client))
                .map_err(|e| GateError::Unavailable(format!("Redis: {}", e.details())))?;
            cell.writer.vet().await.map_err(|e| GateError::Unavailable(e.to_string()))?;
            cell.probe_writes().await;
            let state = match meta.state.as_str() {
                "" => "absent",
                // Over a claim that nobody follows up, an instruction to operators may stand.
                _ if meta.claim > meta.epoch && meta.reason.as_deref() == Some(REBUILDING) => "rebuilding",
                state => state,
            };
            // Open, but not for this instance.
            let mut fenced = cell.fence.trouble(meta.epoch).filter(|_| state == "open");
            if fenced.is_none() && state == "open" && cell.clock_jumped().await {
                fenced = Some(cell::CLOCK_AHEAD.to_owned());
            }
            let state = if fenced.is_some() { "closed" } else { state };
            all.push(CellStatus {
                cell: cell.number,
                epoch: meta.epoch,
                seq: meta.seq,
                applied: meta.applied,
                state: state.to_owned(),
                reason: fenced.or(meta.reason),
                backlog_full: meta.seq.saturating_sub(meta.applied) >= self.log_limit,
                writes_refused: cell.writes.refusal(),
                writes_refused_why: cell.writes.reason(),
            });
        }
        Ok(all)
    }

    /// Ends the connections; for those who need a gate for a while only.
    pub async fn close(&self) {
        for Lanes { cell, .. } in &self.cells {
            for client in [&cell.writer.client, &cell.reader] {
                let _ = client.quit().await; // it may be gone already
            }
        }
    }

    /// For tests of what never reaches a cell.
    #[cfg(test)]
    pub(crate) fn without_cells() -> Self {
        Self {
            cells: vec![],
            sold_out_templates: SoldOutMemory::default(),
            sold_out_products: SoldOutMemory::default(),
            log_limit: 1,
            _fence: None,
            _thread: None,
        }
    }

    fn lanes_of(&self, user_id: &UserId) -> &Lanes {
        let cells = u32::try_from(self.cells.len()).unwrap_or(1);
        &self.cells[keys::cell_of(user_id.as_str(), cells) as usize]
    }

    /// Where products and templates are decided: with one cell, in that one.
    fn shop_lanes(&self) -> &Lanes {
        &self.cells[0]
    }
}

/// Connects and starts each cell's queues and the fence, on the runtime that calls it.
async fn start_cells(
    servers: Servers,
    limits: BatchLimits,
) -> Result<(Vec<Lanes>, AbortOnDropHandle<()>), RedisSetupError> {
    let fence = Fence::new(servers.fence);
    let mut cells = Vec::new();
    for number in 0..servers.cells {
        let writer = redis::connect(&servers.redis_url).await?;
        let reader = redis::connect(&servers.redis_url).await?;
        let writer = redis::Vetted::new(writer, servers.durability).await?;
        let fence = CellFence::new(Arc::clone(&fence));
        cells.push(Lanes::start(Arc::new(Cell::new(number, writer, reader, fence)), limits));
    }
    let watched = cells.iter().map(|lanes: &Lanes| Arc::clone(&lanes.cell)).collect();
    let watcher = tokio::spawn(Watcher::new(fence, watched, servers.database_url).run());
    Ok((cells, AbortOnDropHandle::new(watcher)))
}

fn packed_lines(lines: &[Line]) -> Vec<(&str, u64)> {
    lines.iter().map(|line| (line.product_id.as_str(), line.quantity)).collect()
}

/// A request that is answered without a script of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyedRequest {
    /// Of an order that may be cancelled already.
    CancelOrder(Uuid),
    RefreshPopular,
}

impl KeyedRequest {
    /// The record of this request with a key.
    pub fn record(self, key: &IdempotencyKey) -> Idempotency {
        match self {
            Self::CancelOrder(order_id) => record_key("cancel_order", key, &Id(order_id)),
            Self::RefreshPopular => record_key("refresh_popular", key, &()),
        }
    }
}

/// What stands for a request in its idempotency record: whose key, and a hash of what was asked (without the ids that
/// are made for each try).
fn record_key(script: &str, key: &IdempotencyKey, wanted: &impl Serialize) -> Idempotency {
    let mut hash = Sha256::new();
    hash.update(script.as_bytes());
    hash.update(rmp_serde::to_vec(wanted).unwrap_or_default());
    let request_hash = Blob(hash.finalize()[..16].to_vec());
    Idempotency { scope: format!("{} {}", key.user, key.key), request_hash }
}

fn pack(value: &impl Serialize) -> Result<Vec<u8>, GateError> {
    wire::pack(value).map_err(|e| GateError::Unavailable(format!("cannot pack a request: {e}")))
}

/// One request through its script's queue. A refusal as late that came before the deadline (the gate's clock was set
/// forward meanwhile) is asked again.
async fn decide<F: DeserializeOwned, R: DeserializeOwned + Refusal>(
    lane: &Batcher,
    body: &impl Serialize,
    key: Option<Idempotency>,
    deadline: Instant,
) -> Decision<F, R> {
    let decision = ask(lane, body, 1, key, None, deadline).await;
    lane.meters.decided(&decision);
    decision
}

/// As [`decide`], for orders, which are told to others: what is decided on `id` keeps the trace of the request.
async fn decide_traced<F: DeserializeOwned, R: DeserializeOwned + Refusal>(
    lane: &Batcher,
    id: Id,
    body: &impl Serialize,
    lines: usize,
    key: Option<Idempotency>,
    deadline: Instant,
) -> Decision<F, R> {
    let (began, trace) = (Instant::now(), Trace::current());
    let mark = trace.as_ref().map(|trace| pack(&trace.mark.packed(id))).transpose()?;
    let decision = ask(lane, body, lines, key, mark, deadline).await;
    lane.meters.decided(&decision);
    if let Some(trace) = trace {
        trace.mark.child(SpanKind::Client, lane.script.name, began.elapsed());
    }
    decision
}

async fn ask<F: DeserializeOwned, R: DeserializeOwned>(
    lane: &Batcher,
    body: &impl Serialize,
    lines: usize,
    key: Option<Idempotency>,
    trace: Option<Vec<u8>>,
    deadline: Instant,
) -> Decision<F, R> {
    let unreadable = |e: rmp_serde::decode::Error| {
        tracing::error!(error = %e, "a verdict cannot be read");
        GateError::OutcomeUnknown
    };
    let scope = |replayed: bool| key.as_ref().filter(|_| replayed).map(|key| key.scope.clone());
    for _ in 0..bounds::GATE_REPEATS {
        let packed_key = key.as_ref().map(pack).transpose()?;
        let (verdict, position) = lane.ask(deadline, packed_key, pack(body)?, trace.clone(), lines).await?;
        return match rmp_serde::from_slice::<Verdict<'_, R>>(&verdict).map_err(unreadable)? {
            Verdict::Accepted { fact, replayed } => {
                let fact = rmp_serde::from_slice(fact.0).map_err(unreadable)?;
                Ok(Ok(Accepted { fact, replayed, scope: scope(replayed), position }))
            }
            Verdict::Refused(refusal) => Ok(Err(refusal)),
            Verdict::KeyReused => Err(GateError::IdempotencyKeyReused),
            Verdict::KeysSpent(ms) => Err(GateError::KeysSpent { retry_after_secs: ms.div_ceil(1_000) }),
            Verdict::Late if Instant::now() < deadline => continue,
            Verdict::Late => Err(GateError::Overloaded),
        };
    }
    Err(GateError::Overloaded)
}

async fn read(lanes: &Lanes, what: &impl Serialize) -> Result<Bytes, GateError> {
    Ok(ask_read(lanes, what).await?.0)
}

/// The answer, and where the log stood. The script does not look at deadlines, so the wait for it ends here.
async fn ask_read(lanes: &Lanes, what: &impl Serialize) -> Result<(Bytes, Position), GateError> {
    let deadline = Instant::now() + lanes.read_limit;
    let asking = lanes.read.ask(deadline, None, pack(what)?, None, 1);
    let answer = match tokio::time::timeout_at(deadline.into(), asking).await {
        Ok(answer) => answer,
        Err(_) => Err(GateError::Unavailable("a read took too long".into())),
    };
    lanes.read.meters.read(&answer);
    answer
}

async fn now(lanes: &Lanes) -> Result<TimestampMs, GateError> {
    Ok(lanes.cell.view().await?.now())
}
