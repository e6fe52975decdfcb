//! The gate's reads, and waiting until PostgreSQL has applied the log.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use serde::Serialize;
use uuid::Uuid;

use super::refusal::{Accepted, GateError, HeldCoupon, NotApplied};
use super::unconfirmed_decisions::UnconfirmedDecisions;
use super::verdict::pack;
use super::{CellQueues, Gate, PackedProducts, Watched, read};
use crate::config::bounds::LIVE_ASKED_IDS;
use crate::domain::fact::CouponIssued;
use crate::domain::limits::MAX_PAGE;
use crate::domain::wire::{Blob, Id};
use crate::domain::{
    CouponStatus, CouponTemplate, Discount, Position, Product, ProductId, TemplateId, TimestampMs,
    UserId,
};
use crate::redis::keys;

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

/// A value, and the gate's clock when it was read.
#[derive(Clone, Debug)]
pub struct ReadAt<T> {
    pub value: T,
    pub now: TimestampMs,
}

impl Gate {
    /// The time by which the gate would date a fact now.
    pub async fn now(&self) -> Result<TimestampMs, GateError> {
        now(self.shop_queues()).await
    }

    /// The decisions that this instance remembers, by cell, after a check that Redis still holds
    /// what it has answered.
    pub async fn unconfirmed(&self) -> Vec<(u32, Arc<UnconfirmedDecisions>)> {
        for CellQueues { cell, .. } in
            self.cells.iter().filter(|queues| !queues.unconfirmed.is_empty())
        {
            // Closes the cell if Redis does not; others notice a Redis that does not answer.
            let _ = cell.refresh().await;
        }
        self.cells
            .iter()
            .map(|queues| (queues.cell.number, Arc::clone(&queues.unconfirmed)))
            .collect()
    }

    /// `None`: a user without a wallet.
    pub async fn balance(&self, user_id: &UserId) -> Result<Option<u64>, GateError> {
        let answer = fetch(self.queues_of(user_id), &("balance", user_id.as_str())).await?;
        read::balance(&answer)
    }

    /// In the order of `ids`, without unknown ones; at most a page.
    pub async fn products(&self, ids: &[ProductId]) -> Result<Vec<Product>, GateError> {
        self.packed_products_by_id(ids).await?.unpack()
    }

    /// The answer behind [`Self::products`], not decoded: equal lists are equal bytes.
    pub async fn packed_products_by_id(
        &self,
        ids: &[ProductId],
    ) -> Result<PackedProducts, GateError> {
        let ids: Vec<&str> = ids.iter().take(MAX_PAGE).map(ProductId::as_str).collect();
        Ok(PackedProducts(fetch(self.shop_queues(), &("products", ids)).await?))
    }

    /// Up to `limit` products with ids above `after`, in the order of their ids.
    pub async fn list_products(
        &self,
        after: Option<&ProductId>,
        limit: usize,
    ) -> Result<Vec<Product>, GateError> {
        self.packed_products(after, limit).await?.unpack()
    }

    /// The answer behind [`Self::list_products`], not decoded: equal lists are equal bytes.
    pub async fn packed_products(
        &self,
        after: Option<&ProductId>,
        limit: usize,
    ) -> Result<PackedProducts, GateError> {
        let after = after.map_or("", ProductId::as_str);
        Ok(PackedProducts(fetch(self.shop_queues(), &("list_products", after, limit)).await?))
    }

    pub async fn template(
        &self,
        id: &TemplateId,
    ) -> Result<ReadAt<Option<CouponTemplate>>, GateError> {
        let ReadAt { mut value, now } = self.templates(std::slice::from_ref(id)).await?;
        Ok(ReadAt { value: value.pop(), now })
    }

    /// In the order of `ids`, without unknown ones; at most a page.
    pub async fn templates(
        &self,
        ids: &[TemplateId],
    ) -> Result<ReadAt<Vec<CouponTemplate>>, GateError> {
        let queues = self.shop_queues();
        let ids: Vec<&str> = ids.iter().take(MAX_PAGE).map(TemplateId::as_str).collect();
        let answer = fetch(queues, &("templates", ids)).await?;
        Ok(ReadAt { value: read::templates(&answer)?, now: now(queues).await? })
    }

    /// Up to `limit` templates with ids above `after`, in the order of their ids.
    pub async fn list_templates(
        &self,
        after: Option<&TemplateId>,
        limit: usize,
    ) -> Result<ReadAt<Vec<CouponTemplate>>, GateError> {
        let queues = self.shop_queues();
        let after = after.map_or("", TemplateId::as_str);
        let answer = fetch(queues, &("list_templates", after, limit)).await?;
        Ok(ReadAt { value: read::templates(&answer)?, now: now(queues).await? })
    }

    /// Products and templates with their counts, read in one call. Unknown ids are left out; at most
    /// [`LIVE_ASKED_IDS`] of each kind.
    pub async fn watched(
        &self,
        products: &[ProductId],
        templates: &[TemplateId],
    ) -> Result<Watched, GateError> {
        let products: Vec<&str> =
            products.iter().take(LIVE_ASKED_IDS).map(ProductId::as_str).collect();
        let templates: Vec<&str> =
            templates.iter().take(LIVE_ASKED_IDS).map(TemplateId::as_str).collect();
        read::watched(&fetch(self.shop_queues(), &("watched", products, templates)).await?)
    }

    /// Up to `limit` coupons of a user that have this status now, newest first, after the coupon
    /// `after`. `None`: the user does not hold that coupon.
    pub async fn held_coupons(
        &self,
        user_id: &UserId,
        status: Option<CouponStatus>,
        limit: usize,
        after: Option<Uuid>,
    ) -> Result<Option<ReadAt<Vec<HeldCoupon>>>, GateError> {
        let (queues, status) = (self.queues_of(user_id), status.map_or("", CouponStatus::name));
        let (mut found, mut after) = (Vec::new(), after);
        loop {
            let after_id = after.map_or(Blob(vec![]), |id| Blob(id.as_bytes().to_vec()));
            let wanted = ("held", user_id.as_str(), status, limit - found.len(), after_id);
            let Some(page) = read::held(&fetch(queues, &wanted).await?)? else { return Ok(None) };
            found.extend(page.coupons);
            match page.go_on_after {
                Some(last) if found.len() < limit => after = Some(last),
                _ => return Ok(Some(ReadAt { value: found, now: page.now })),
            }
        }
    }

    /// [`Self::issued_terms`], if this instance knows them.
    pub fn known_terms(&self, issued: &Accepted<CouponIssued>) -> Option<(Discount, u64)> {
        let CouponIssued { template_id, terms_number, .. } = &issued.fact;
        self.terms.find(template_id, (issued.position.epoch, *terms_number))
    }

    /// The terms that a coupon was issued with: discount and minimum subtotal. `None`: the gate does
    /// not know them.
    pub async fn issued_terms(
        &self,
        issued: &Accepted<CouponIssued>,
    ) -> Result<Option<(Discount, u64)>, GateError> {
        let CouponIssued { template_id, terms_number, .. } = &issued.fact;
        let of = (issued.position.epoch, *terms_number);
        let wanted = ("terms", template_id, terms_number);
        let terms = read::issued_terms(&fetch(self.shop_queues(), &wanted).await?)?;
        if let Some(terms) = terms {
            self.terms.remember(template_id, of, terms);
        }
        Ok(terms)
    }

    /// One coupon of a user; `None`: the user does not hold it.
    pub async fn held_coupon(
        &self,
        user_id: &UserId,
        coupon_id: Uuid,
    ) -> Result<Option<ReadAt<HeldCoupon>>, GateError> {
        let wanted = ("coupon", user_id.as_str(), Id(coupon_id));
        let page = read::held(&fetch(self.queues_of(user_id), &wanted).await?)?;
        Ok(page
            .and_then(|mut page| page.coupons.pop().map(|value| ReadAt { value, now: page.now })))
    }

    /// The pieces that a user has bought under each of these limits.
    pub async fn bought(&self, user_id: &UserId, limits: &[u64]) -> Result<Vec<u64>, GateError> {
        let queues = self.queues_of(user_id);
        read::bought(&fetch(queues, &("bought", user_id.as_str(), limits)).await?)
    }

    /// The number of a user's pending orders.
    pub async fn pending_orders(&self, user_id: &UserId) -> Result<u64, GateError> {
        read::pending_count(&fetch(self.queues_of(user_id), &("pending", user_id.as_str())).await?)
    }

    /// Waits until PostgreSQL has applied everything that the gate has decided up to now.
    pub async fn catch_up(&self, deadline: Instant) -> Result<CaughtUp, NotApplied> {
        let mut positions = Vec::with_capacity(self.cells.len());
        for queues in &self.cells {
            let (_, position) = fetch_at(queues, &("place",)).await?;
            queues.cell.wait_applied(position, deadline).await?;
            positions.push(position);
        }
        Ok(CaughtUp(positions))
    }

    /// Waits until PostgreSQL has applied the log up to `position`.
    pub async fn wait_applied(
        &self,
        position: Position,
        deadline: Instant,
    ) -> Result<(), NotApplied> {
        match self.cells.iter().find(|queues| queues.cell.number == position.cell) {
            Some(queues) => queues.cell.wait_applied(position, deadline).await,
            None => {
                Err(GateError::Unavailable(format!("there is no cell {}", position.cell)).into())
            }
        }
    }
}

pub(super) async fn fetch(queues: &CellQueues, what: &impl Serialize) -> Result<Bytes, GateError> {
    Ok(fetch_at(queues, what).await?.0)
}

/// The answer, and where the log stood. The time limit is enforced here, because the script checks
/// no deadlines of reads.
async fn fetch_at(
    queues: &CellQueues,
    what: &impl Serialize,
) -> Result<(Bytes, Position), GateError> {
    let deadline = Instant::now() + queues.read_limit;
    let asking = queues.read.ask(deadline, None, pack(what)?, None, 1);
    let answer = match tokio::time::timeout_at(deadline.into(), asking).await {
        Ok(answer) => answer,
        Err(_) => Err(GateError::Unavailable("a read took too long".into())),
    };
    queues.read.metrics.read(&answer);
    answer
}

pub(super) async fn now(queues: &CellQueues) -> Result<TimestampMs, GateError> {
    Ok(queues.cell.view().await?.now())
}
