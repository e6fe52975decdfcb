//! Searching orders by user, product, template, status and time, newest first.
//!
//! One filter is the *driver*: an index gives the ids of its orders, newest first, from the place
//! where the page begins. Each order is then looked up by its id and checked against the other
//! filters. So a page costs the same however far back it is; see [`Examined`] for filters that few
//! orders pass.

use sqlx::{Postgres, QueryBuilder};
use uuid::Uuid;

use super::examined::{Examined, Examining};
use super::orders::OrderRow;
use super::{Truth, TruthError, limit_of};
use crate::config::bounds::{CLOCK_JUMP_LIMIT, EXAMINED_ROWS};
use crate::domain::{OrderStatus, OrderView, ProductId, TemplateId, TimestampMs, UserId};

/// Orders that meet all of these conditions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OrderSearch {
    pub user_id: Option<UserId>,
    /// This product is among the items.
    pub product_id: Option<ProductId>,
    /// Ordered with a coupon of this template.
    pub template_id: Option<TemplateId>,
    pub status: Option<OrderStatus>,
    /// The shop's own order number.
    pub reference: Option<String>,
    /// Ordered at this time or later …
    pub from: Option<TimestampMs>,
    /// … and before this time.
    pub until: Option<TimestampMs>,
}

/// How far the time within an order's id and its `ordered_at` can be apart. The id is made before
/// the gate decides, at most a request's time limit earlier, of the gate's clock as the instance
/// knows it. An instance decides nothing while that clock is further from its own than
/// [`CLOCK_JUMP_LIMIT`].
const ID_TIME_MARGIN_MS: i64 = CLOCK_JUMP_LIMIT.as_millis() as i64 + 60_000;

const LAST_ID: Uuid = Uuid::max();

impl Truth {
    /// Up to `limit` orders that are older than `after`, newest first.
    pub async fn search_orders(
        &self,
        search: &OrderSearch,
        after: Option<Uuid>,
        limit: usize,
    ) -> Result<Examined<OrderView, Uuid>, TruthError> {
        let mut page = Examining::new(after, limit);
        while let Some((after, limit)) = page.next_part() {
            let mut query = search.page(after, limit);
            let found: Vec<OrderRow> =
                self.read(query.build_query_as().fetch_all(&self.pool)).await?;
            let go_on_after = match found.len() < limit && search.filters_the_driver() {
                true => {
                    let mut query = search.last_examined(after);
                    self.read(query.build_query_scalar().fetch_optional(&self.pool)).await?
                }
                false => None,
            };
            page.add(found, go_on_after);
        }
        let Examined { found, go_on_after } = page.page();
        Ok(Examined { found: self.with_items(found).await?, go_on_after })
    }
}

/// Whose index gives the ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Driver {
    Reference,
    User,
    Template,
    Product,
    /// A status other than `paid`.
    Status,
    All,
}

impl OrderSearch {
    /// The filter that usually leaves the fewest orders. A status is the last choice: of one
    /// product there are few orders in most shops, and of all orders many are cancelled.
    fn driver(&self) -> Driver {
        match self {
            Self { reference: Some(_), .. } => Driver::Reference,
            Self { user_id: Some(_), .. } => Driver::User,
            Self { template_id: Some(_), .. } => Driver::Template,
            Self { product_id: Some(_), .. } => Driver::Product,
            Self { status: Some(OrderStatus::Paid) | None, .. } => Driver::All,
            Self { status: Some(_), .. } => Driver::Status,
        }
    }

    /// Whether orders of the driver may fail another filter.
    fn filters_the_driver(&self) -> bool {
        let driven = usize::from(self.driver() != Driver::All);
        let given = [
            self.reference.is_some(),
            self.user_id.is_some(),
            self.template_id.is_some(),
            self.product_id.is_some(),
            self.status.is_some(),
            self.from.is_some(),
            self.until.is_some(),
        ];
        given.into_iter().filter(|given| *given).count() > driven
    }

    fn page(&self, after: Option<Uuid>, limit: usize) -> QueryBuilder<'_, Postgres> {
        let mut query = QueryBuilder::new("SELECT orders.* FROM (");
        self.push_ids(&mut query, after);
        // OFFSET 0 keeps the subquery as it is: joined in another order, it would read and sort all
        // orders of the driver.
        query.push(
            ") AS ids CROSS JOIN LATERAL (
               SELECT order_id, user_id, status, subtotal, discount, total, coupon_id, balance_after,
                 (extract(epoch FROM ordered_at) * 1000)::bigint AS ordered_at_ms,
                 (extract(epoch FROM cancelled_at) * 1000)::bigint AS cancelled_at_ms,
                 reference, external, wallet_amount, payment_reference,
                 (extract(epoch FROM hold_expires_at) * 1000)::bigint AS hold_expires_at_ms,
                 (extract(epoch FROM expired_at) * 1000)::bigint AS expired_at_ms,
                 (extract(epoch FROM paid_at) * 1000)::bigint AS paid_at_ms
               FROM orders WHERE order_id = ids.order_id",
        );
        self.push_checks(&mut query);
        query
            .push(" OFFSET 0) AS orders ORDER BY ids.order_id DESC LIMIT ")
            .push_bind(limit_of(limit));
        query
    }

    /// The id with which the part of the driver ends that a page examines; none: the driver ends
    /// within it.
    fn last_examined(&self, after: Option<Uuid>) -> QueryBuilder<'_, Postgres> {
        let mut query = QueryBuilder::new("SELECT order_id FROM (");
        self.push_ids(&mut query, after);
        query.push(") AS ids ORDER BY order_id DESC OFFSET ").push(EXAMINED_ROWS - 1);
        query
    }

    fn push_ids<'a>(&'a self, query: &mut QueryBuilder<'a, Postgres>, after: Option<Uuid>) {
        query.push("SELECT order_id FROM ");
        match self.driver() {
            Driver::Reference => query
                .push("orders WHERE reference = ")
                .push_bind(text(&self.reference, String::as_str)),
            Driver::User => {
                query.push("orders WHERE user_id = ").push_bind(text(&self.user_id, UserId::as_str))
            }
            Driver::Template => query
                .push("order_templates WHERE template_id = ")
                .push_bind(text(&self.template_id, TemplateId::as_str)),
            Driver::Product => query
                .push("order_items WHERE product_id = ")
                .push_bind(text(&self.product_id, ProductId::as_str)),
            // Not a parameter: the index holds only orders that are not paid.
            Driver::Status => query
                .push("orders WHERE status = '")
                .push(self.status.map_or("", OrderStatus::as_str))
                .push("'"),
            Driver::All => query.push("orders WHERE true"),
        };
        let until = self
            .until
            .map_or(LAST_ID, |until| first_id_at(until.saturating_add(ID_TIME_MARGIN_MS)));
        query.push(" AND order_id < ").push_bind(after.unwrap_or(LAST_ID).min(until));
        if let Some(from) = self.from {
            let from = first_id_at(from.saturating_sub(ID_TIME_MARGIN_MS));
            query.push(" AND order_id >= ").push_bind(from);
        }
        query.push(" ORDER BY order_id DESC LIMIT ").push(EXAMINED_ROWS);
    }

    /// Every filter but the driver's.
    fn push_checks<'a>(&'a self, query: &mut QueryBuilder<'a, Postgres>) {
        let driver = self.driver();
        if let Some(template_id) = self.template_id.as_ref().filter(|_| driver != Driver::Template)
        {
            query.push(" AND EXISTS (SELECT FROM order_templates AS t WHERE t.order_id = ids.order_id AND t.template_id = ");
            query.push_bind(template_id.as_str()).push(")");
        }
        if let Some(product_id) = self.product_id.as_ref().filter(|_| driver != Driver::Product) {
            query.push(" AND EXISTS (SELECT FROM order_items AS i WHERE i.order_id = ids.order_id AND i.product_id = ");
            query.push_bind(product_id.as_str()).push(")");
        }
        if let Some(user_id) = self.user_id.as_ref().filter(|_| driver != Driver::User) {
            query.push(" AND user_id = ").push_bind(user_id.as_str());
        }
        if let Some(status) = self.status.filter(|_| driver != Driver::Status) {
            query.push(" AND status = ").push_bind(status.as_str());
        }
        for (compared, at) in
            [(" AND ordered_at >= ", self.from), (" AND ordered_at < ", self.until)]
        {
            if let Some(at) = at {
                query
                    .push(compared)
                    .push("to_timestamp(")
                    .push_bind(at)
                    .push("::bigint / 1000.0::float8)");
            }
        }
    }
}

fn text<'a, T>(value: &'a Option<T>, text: impl Fn(&'a T) -> &'a str) -> &'a str {
    value.as_ref().map_or("", text)
}

/// The lowest UUIDv7 of a millisecond.
fn first_id_at(at_ms: TimestampMs) -> Uuid {
    const MOST: i64 = (1 << 48) - 1;
    let at_ms = u128::from(at_ms.clamp(0, MOST).unsigned_abs());
    Uuid::from_u128(at_ms << 80)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_bounded_by_their_time() {
        let id = Uuid::from_u128(0x019a_0000_0000_7000_8000_0000_0000_0000);
        let at = 0x019a_0000_0000;
        assert!(first_id_at(at) <= id && id < first_id_at(at + 1));
        assert_eq!(first_id_at(-1), Uuid::nil());
        assert!(first_id_at(i64::MAX) <= LAST_ID);
    }

    #[test]
    fn only_a_filter_beside_the_drivers_leaves_orders_out() {
        let paid = OrderSearch { status: Some(OrderStatus::Paid), ..OrderSearch::default() };
        let cancelled =
            OrderSearch { status: Some(OrderStatus::Cancelled), ..OrderSearch::default() };
        let from = OrderSearch { from: Some(0), ..OrderSearch::default() };
        assert!(!OrderSearch::default().filters_the_driver() && !cancelled.filters_the_driver());
        assert!(paid.filters_the_driver() && from.filters_the_driver());
        let product_id = Some(ProductId::parse("p").unwrap());
        assert!(
            !OrderSearch { product_id: product_id.clone(), ..OrderSearch::default() }
                .filters_the_driver()
        );
        assert!(OrderSearch { product_id, ..cancelled }.filters_the_driver());
    }
}
