//! Loading pending orders into an epoch, with what they hold for their users.

use std::collections::BTreeMap;

use bytes::Bytes;
use fred::interfaces::SortedSetsInterface;
use fred::prelude::*;
use futures::TryStreamExt;
use sqlx::PgConnection;
use uuid::Uuid;

use super::load::{HashLoader, LoadError, LoadedHash, packed, unsigned};
use crate::domain::TimestampMs;
use crate::domain::fact::{PendingLine, PendingOrder};
use crate::domain::wire::Id;
use crate::redis::keys::Keys;

/// Elements per ZADD.
const ELEMENTS_PER_COMMAND: usize = 1_000;

/// A line of a pending order with what its order has.
#[derive(sqlx::FromRow)]
struct Row {
    order_id: Uuid,
    user_id: String,
    subtotal: i64,
    discount: i64,
    total: i64,
    coupon_id: Option<Uuid>,
    wallet_amount: i64,
    ordered_at_ms: TimestampMs,
    hold_expires_at_ms: TimestampMs,
    reference: Option<String>,
    product_id: String,
    name: String,
    unit_price: i64,
    quantity: i64,
    amount: i64,
    limit_number: Option<i64>,
}

impl Row {
    fn order(&self) -> PendingOrder {
        PendingOrder {
            user_id: self.user_id.clone(),
            lines: Vec::new(),
            subtotal: unsigned(self.subtotal),
            discount: unsigned(self.discount),
            total: unsigned(self.total),
            coupon_id: self.coupon_id.map(Id),
            wallet_amount: unsigned(self.wallet_amount),
            ordered_at: self.ordered_at_ms,
            hold_expires_at: self.hold_expires_at_ms,
            reference: self.reference.clone(),
        }
    }

    fn line(self) -> PendingLine {
        PendingLine {
            product_id: self.product_id,
            name: self.name,
            unit_price: unsigned(self.unit_price),
            quantity: unsigned(self.quantity),
            amount: unsigned(self.amount),
            limit_number: self.limit_number.map(unsigned),
        }
    }
}

/// Collects the orders, whose rows arrive one after the other.
struct Loader<'a> {
    client: &'a Client,
    due_key: String,
    orders: HashLoader<'a>,
    due: Vec<(f64, Bytes)>,
    due_sent: u64,
    /// user → pending orders, won that they took from the wallet
    users: BTreeMap<String, (u64, u64)>,
}

impl Loader<'_> {
    async fn add(&mut self, id: Uuid, order: &PendingOrder) -> Result<(), LoadError> {
        let (orders, won) = self.users.entry(order.user_id.clone()).or_default();
        *orders += 1;
        *won += order.wallet_amount;
        self.orders.add(id.as_bytes().to_vec(), packed(order)?).await?;
        self.due.push((order.hold_expires_at as f64, Bytes::copy_from_slice(id.as_bytes())));
        if self.due.len() >= ELEMENTS_PER_COMMAND { self.send_due().await } else { Ok(()) }
    }

    async fn send_due(&mut self) -> Result<(), LoadError> {
        let due = std::mem::take(&mut self.due);
        if !due.is_empty() {
            self.due_sent += due.len() as u64;
            let _: i64 =
                self.client.zadd(self.due_key.as_str(), None, None, false, false, due).await?;
        }
        Ok(())
    }
}

/// Returns the hashes and the sorted set, with the number of their elements.
pub(super) async fn load(
    conn: &mut PgConnection,
    client: &Client,
    keys: &Keys,
) -> Result<[LoadedHash; 3], LoadError> {
    let mut rows = sqlx::query_as::<_, Row>(include_str!("sql/load_pending.sql")).fetch(conn);
    let mut loader = Loader {
        client,
        due_key: keys.pending_due(),
        orders: HashLoader::new(client, keys.pending()),
        due: Vec::new(),
        due_sent: 0,
        users: BTreeMap::new(),
    };
    let mut current: Option<(Uuid, PendingOrder)> = None;
    while let Some(row) = rows.try_next().await? {
        if current.as_ref().is_none_or(|(id, _)| *id != row.order_id)
            && let Some((id, order)) = current.replace((row.order_id, row.order()))
        {
            loader.add(id, &order).await?;
        }
        if let Some((_, order)) = &mut current {
            order.lines.push(row.line());
        }
    }
    if let Some((id, order)) = current {
        loader.add(id, &order).await?;
    }
    loader.send_due().await?;
    let mut users = HashLoader::new(client, keys.pending_users());
    for (user, (orders, won)) in loader.users {
        users.add(user, format!("{orders}:{won}")).await?;
    }
    let due = (loader.due_key, loader.due_sent);
    Ok([loader.orders.finish().await?, due, users.finish().await?])
}
