//! Applying by differences: recomputes entries for a PostgreSQL that lacks a fact which they build
//! on. Pure, no I/O.
//!
//! Entries hold after-images, and those of later entries include the skipped fact. So each fact is
//! recomputed on top of what PostgreSQL holds ([`Picture`]): its change is added to the current
//! stock, balance or count, and its after-images are replaced by the results. Answers stand as long
//! as the shop's invariants hold: prices, discounts, windows and product states are not checked
//! again. A fact that can no longer hold (a balance or stock below zero, a missing coupon or order)
//! is left out, with the reason. Facts that depend on it find it missing in the same way, in this
//! transaction or a later one.
//!
//! Serials stay dense, because the audit and the gate count by them: a coupon that follows a
//! skipped one moves up by one.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::Value;
use uuid::Uuid;

use crate::domain::OrderStatus;
use crate::domain::fact::{
    CouponIssued, Facts, OrderCancelled, OrderConfirmed, OrderExpired, OrderPlaced, ProductPut,
    PurchaseCount, ReturnedLine, StockAdjusted, TemplatePut, WalletCharged,
};
use crate::domain::limits::MAX_BALANCE;
use crate::domain::wire;
use crate::log::Entry;
use crate::log::told::{Told, ToldFact};

/// The number of coupons issued from a template, its limit, and the numbers of its terms.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Issuing {
    pub issued: u64,
    pub max_issued: u64,
    /// Of the present terms; `None`: the template's own.
    pub terms_number: Option<u64>,
    /// All that differ from the template's own.
    pub later_terms: BTreeSet<u64>,
}

/// The holder of a coupon, and the order that uses it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldBy {
    pub user_id: String,
    pub order_id: Option<Uuid>,
}

/// The rows of PostgreSQL that some entries touch. A key that is missing here has no row there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Picture {
    pub wallets: HashMap<String, u64>,
    /// user → won that their pending orders took from the wallet
    pub held: HashMap<String, u64>,
    pub stocks: HashMap<String, u64>,
    pub templates: HashMap<String, Issuing>,
    pub coupons: HashMap<Uuid, HeldBy>,
    /// (user, template) → coupon
    pub holders: HashMap<(String, String), Uuid>,
    pub orders: HashMap<Uuid, OrderStatus>,
    /// (limit, user) → pieces bought
    pub purchases: HashMap<(u64, String), u64>,
}

/// The keys of a [`Picture`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    pub users: BTreeSet<String>,
    pub products: BTreeSet<String>,
    pub templates: BTreeSet<String>,
    pub coupons: BTreeSet<Uuid>,
    pub holders: BTreeSet<(String, String)>,
    pub orders: BTreeSet<Uuid>,
    pub purchases: BTreeSet<(u64, String)>,
}

impl Touched {
    pub fn add(&mut self, facts: &Facts) {
        match facts {
            Facts::CouponsIssued(all) => all.iter().for_each(|f| {
                self.templates.insert(f.template_id.clone());
                self.holders.insert((f.user_id.clone(), f.template_id.clone()));
            }),
            Facts::WalletsCharged(all) => self.users.extend(all.iter().map(|f| f.user_id.clone())),
            Facts::OrdersPlaced(all) => all.iter().for_each(|f| {
                self.users.insert(f.user_id.clone());
                self.products.extend(f.lines.iter().map(|line| line.product_id.clone()));
                self.coupons.extend(f.coupon_id.map(|id| id.0));
                self.counts(&f.user_id, f.more.as_ref().map(|more| more.counts.as_slice()));
            }),
            Facts::OrdersConfirmed(all) => all.iter().for_each(|f| {
                self.users.insert(f.order.user_id.clone());
                self.orders.insert(f.order_id.0);
            }),
            Facts::OrdersExpired(all) => all.iter().for_each(|f| {
                self.users.insert(f.user_id.clone());
                self.products.extend(f.lines.iter().map(|line| line.product_id.clone()));
                self.coupons.extend(f.coupon_id.map(|id| id.0));
                self.orders.insert(f.order_id.0);
                self.counts(&f.user_id, Some(&f.counts));
            }),
            Facts::OrdersCancelled(all) => all.iter().for_each(|f| {
                self.users.insert(f.user_id.clone());
                self.products.extend(f.lines.iter().map(|line| line.product_id.clone()));
                self.coupons.extend(f.coupon_id.map(|id| id.0));
                self.orders.insert(f.order_id.0);
                self.counts(&f.user_id, f.more.as_ref().map(|more| more.counts.as_slice()));
            }),
            Facts::ProductsPut(all) => {
                self.products.extend(all.iter().map(|f| f.product_id.clone()))
            }
            Facts::StocksAdjusted(all) => {
                self.products.extend(all.iter().map(|f| f.product_id.clone()))
            }
            Facts::TemplatesPut(all) => {
                self.templates.extend(all.iter().map(|f| f.template_id.clone()))
            }
        }
    }
}

impl Touched {
    fn counts(&mut self, user: &str, counts: Option<&[PurchaseCount]>) {
        let keys = counts.into_iter().flatten().map(|it| (it.limit_number, user.to_owned()));
        self.purchases.extend(keys);
    }
}

/// What became of a fact that was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Skipped by an operator.
    Skipped,
    /// It can no longer hold.
    Gone,
    /// It holds, with other numbers than the answer gave.
    Changed,
}

impl Outcome {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Skipped => "skipped",
            Self::Gone => "gone",
            Self::Changed => "changed",
        }
    }
}

/// A fact whose answer is no longer true, in whole or in part.
#[derive(Clone, Debug, PartialEq)]
pub struct Untrue {
    /// Its position in the entry, from 1.
    pub fact: usize,
    pub outcome: Outcome,
    pub answered: ToldFact,
    /// What is true instead; only for a changed fact.
    pub holds: Option<Value>,
    pub reason: String,
    /// Its bytes in the entry.
    pub raw: Vec<u8>,
}

/// The facts of one entry to leave out: position (from 1) → reason.
pub type Skips = BTreeMap<usize, String>;

/// Recomputes `entry` on top of `picture`, and brings `picture` to the state after the entry.
/// Returns the entry without the facts that were left out, and each fact whose answer is no longer
/// true.
pub fn rebase(
    picture: &mut Picture,
    entry: Entry,
    skips: &Skips,
) -> Result<(Entry, Vec<Untrue>), rmp_serde::encode::Error> {
    let Entry { seq, version, decided_at, facts, raw_facts, traces } = entry;
    let mut sieve = Sieve { skips, raw: raw_facts, kept: Vec::new(), untrue: Vec::new() };
    let facts = match facts {
        Facts::CouponsIssued(all) => {
            Facts::CouponsIssued(sieve.each(all, |fact| picture.coupon_issued(fact))?)
        }
        Facts::WalletsCharged(all) => {
            Facts::WalletsCharged(sieve.each(all, |fact| picture.wallet_charged(fact))?)
        }
        Facts::OrdersPlaced(all) => {
            Facts::OrdersPlaced(sieve.each(all, |fact| picture.order_placed(fact))?)
        }
        Facts::OrdersCancelled(all) => {
            Facts::OrdersCancelled(sieve.each(all, |fact| picture.order_cancelled(fact))?)
        }
        Facts::OrdersConfirmed(all) => {
            Facts::OrdersConfirmed(sieve.each(all, |fact| picture.order_confirmed(fact))?)
        }
        Facts::OrdersExpired(all) => {
            Facts::OrdersExpired(sieve.each(all, |fact| picture.order_expired(fact))?)
        }
        Facts::ProductsPut(all) => {
            Facts::ProductsPut(sieve.each(all, |fact| picture.product_put(fact))?)
        }
        Facts::StocksAdjusted(all) => {
            Facts::StocksAdjusted(sieve.each(all, |fact| picture.stock_adjusted(fact))?)
        }
        Facts::TemplatesPut(all) => {
            Facts::TemplatesPut(sieve.each(all, |fact| picture.template_put(fact))?)
        }
    };
    let Sieve { kept, untrue, .. } = sieve;
    Ok((Entry { seq, version, decided_at, facts, raw_facts: kept, traces }, untrue))
}

struct Sieve<'a> {
    skips: &'a Skips,
    raw: Vec<Vec<u8>>,
    kept: Vec<Vec<u8>>,
    untrue: Vec<Untrue>,
}

impl Sieve<'_> {
    /// The facts that hold, as `apply` has corrected them.
    fn each<T: Told>(
        &mut self,
        facts: Vec<T>,
        mut apply: impl FnMut(&mut T) -> Result<(), String>,
    ) -> Result<Vec<T>, rmp_serde::encode::Error> {
        let mut holding = Vec::with_capacity(facts.len());
        for (at, mut fact) in facts.into_iter().enumerate() {
            let raw = self.raw.get_mut(at).map(std::mem::take).unwrap_or_default();
            let answered = fact.clone();
            let untrue = |outcome, holds, reason, raw| Untrue {
                fact: at + 1,
                outcome,
                answered: ToldFact::new(&answered),
                holds,
                reason,
                raw,
            };
            if let Some(reason) = self.skips.get(&(at + 1)) {
                self.untrue.push(untrue(Outcome::Skipped, None, reason.clone(), raw));
                continue;
            }
            if let Err(reason) = apply(&mut fact) {
                self.untrue.push(untrue(Outcome::Gone, None, reason, raw));
                continue;
            }
            if fact == answered {
                self.kept.push(raw);
            } else {
                self.kept.push(wire::pack(&fact)?);
                let holds = fact.told();
                if holds != answered.told() {
                    let reason = "it follows a fact that was left out".to_owned();
                    self.untrue.push(untrue(Outcome::Changed, Some(holds), reason, raw));
                }
            }
            holding.push(fact);
        }
        Ok(holding)
    }
}

impl Picture {
    fn balance(&self, user: &str) -> u64 {
        self.wallets.get(user).copied().unwrap_or(0)
    }

    /// `balance + amount`, within the limit. What pending orders took counts towards it, so that
    /// giving it back is never refused.
    fn credited(&self, user: &str, amount: u64) -> Result<u64, String> {
        let (balance, held) = (self.balance(user), self.held.get(user).copied().unwrap_or(0));
        if balance.saturating_add(held).saturating_add(amount) <= MAX_BALANCE {
            return Ok(balance + amount);
        }
        Err(format!(
            "the wallet holds {balance}, and pending orders {held} of it: {amount} more would exceed its limit of {MAX_BALANCE}"
        ))
    }

    /// The balance with what a pending order gives back, which then no longer counts as held.
    fn released(&mut self, user: &str, amount: u64) -> u64 {
        self.no_longer_held(user, amount);
        self.balance(user).saturating_add(amount)
    }

    fn no_longer_held(&mut self, user: &str, amount: u64) {
        if let Some(held) = self.held.get_mut(user) {
            *held = held.saturating_sub(amount);
        }
    }

    fn coupon_issued(&mut self, f: &mut CouponIssued) -> Result<(), String> {
        let place = (f.user_id.clone(), f.template_id.clone());
        if let Some(other) = self.holders.get(&place) {
            return Err(format!("the user holds another coupon of this template: {other}"));
        }
        let Some(template) = self.templates.get_mut(&f.template_id) else {
            return Err(format!("the coupon template {} does not exist", f.template_id));
        };
        if template.issued >= template.max_issued {
            return Err(format!("all {} coupons of the template are issued", template.max_issued));
        }
        // The terms that it was issued with may have been left out.
        if f.terms_number.is_some_and(|number| !template.later_terms.contains(&number)) {
            f.terms_number = template.terms_number;
        }
        template.issued += 1;
        (f.serial, f.remaining) = (template.issued, template.max_issued - template.issued);
        self.holders.insert(place, f.coupon_id.0);
        self.coupons.insert(f.coupon_id.0, HeldBy { user_id: f.user_id.clone(), order_id: None });
        Ok(())
    }

    fn wallet_charged(&mut self, f: &mut WalletCharged) -> Result<(), String> {
        f.balance_after = self.credited(&f.user_id, f.amount)?;
        self.wallets.insert(f.user_id.clone(), f.balance_after);
        Ok(())
    }

    fn order_placed(&mut self, f: &mut OrderPlaced) -> Result<(), String> {
        let balance = self.balance(&f.user_id);
        let outside = f.more.as_ref().and_then(|more| more.outside);
        let won = outside.map_or(f.total, |outside| outside.wallet_amount);
        let Some(balance_after) = balance.checked_sub(won) else {
            let verb = if outside.is_some() { "takes" } else { "costs" };
            return Err(format!("the wallet holds {balance}, the order {verb} {won}"));
        };
        for line in &mut f.lines {
            let Some(stock) = self.stocks.get(&line.product_id) else {
                return Err(format!("the product {} does not exist", line.product_id));
            };
            line.stock_after = stock.checked_sub(line.quantity).ok_or_else(|| {
                format!(
                    "the stock of the product {} is {stock}, the order takes {}",
                    line.product_id, line.quantity
                )
            })?;
        }
        if let Some(id) = f.coupon_id {
            let coupon = self.coupons.get_mut(&id.0).filter(|coupon| coupon.user_id == f.user_id);
            let Some(coupon) = coupon else {
                return Err(format!("the coupon {id} was not issued"));
            };
            if let Some(other) = coupon.order_id {
                return Err(format!("the coupon {id} is used by order {other}"));
            }
            coupon.order_id = Some(f.order_id.0);
        }
        for line in &f.lines {
            self.stocks.insert(line.product_id.clone(), line.stock_after);
        }
        f.balance_after = balance_after;
        if outside.is_none() || won > 0 {
            self.wallets.insert(f.user_id.clone(), balance_after);
        }
        let pending = outside.is_some_and(|outside| outside.hold_expires_at.is_some());
        let status = if pending { OrderStatus::Pending } else { OrderStatus::Paid };
        if pending {
            *self.held.entry(f.user_id.clone()).or_default() += won;
        }
        self.orders.insert(f.order_id.0, status);
        let counts = f.more.as_mut().map_or(&mut [][..], |more| &mut more.counts);
        for count in counts {
            let quantity = line_of(count, &f.lines, |line| line.quantity);
            self.count(&f.user_id, count, |bought| bought.saturating_add(quantity));
        }
        Ok(())
    }

    fn count(&mut self, user: &str, count: &mut PurchaseCount, change: impl Fn(u64) -> u64) {
        let bought = self.purchases.entry((count.limit_number, user.to_owned())).or_default();
        *bought = change(*bought);
        count.bought_after = *bought;
    }

    /// Whether the order is in a state from which it can go on.
    fn expect_order(&self, id: Uuid, allowed: &[OrderStatus]) -> Result<(), String> {
        match self.orders.get(&id) {
            None => Err(format!("the order {id} was not placed")),
            Some(status) if allowed.contains(status) => Ok(()),
            Some(status) => Err(format!("the order {id} is already {}", status.as_str())),
        }
    }

    fn order_confirmed(&mut self, f: &mut OrderConfirmed) -> Result<(), String> {
        self.expect_order(f.order_id.0, &[OrderStatus::Pending])?;
        self.no_longer_held(&f.order.user_id, f.order.wallet_amount);
        f.balance_after = self.balance(&f.order.user_id);
        self.orders.insert(f.order_id.0, OrderStatus::Paid);
        Ok(())
    }

    fn order_expired(&mut self, f: &mut OrderExpired) -> Result<(), String> {
        self.expect_order(f.order_id.0, &[OrderStatus::Pending])?;
        self.return_lines(&mut f.lines)?;
        if let (Some(id), true) = (f.coupon_id, f.coupon_returned) {
            self.return_coupon(id.0, f.order_id.0)?;
        }
        self.put_back(&f.lines);
        f.balance_after = self.released(&f.user_id, f.refund);
        if f.refund > 0 {
            self.wallets.insert(f.user_id.clone(), f.balance_after);
        }
        for count in &mut f.counts {
            let quantity = line_of(count, &f.lines, |line| line.quantity);
            self.count(&f.user_id, count, |bought| bought.saturating_sub(quantity));
        }
        self.orders.insert(f.order_id.0, OrderStatus::Expired);
        Ok(())
    }

    /// Recomputes the stock after each line.
    fn return_lines(&self, lines: &mut [ReturnedLine]) -> Result<(), String> {
        for line in lines {
            let Some(stock) = self.stocks.get(&line.product_id) else {
                return Err(format!("the product {} does not exist", line.product_id));
            };
            line.stock_after = stock.saturating_add(line.quantity);
        }
        Ok(())
    }

    fn return_coupon(&mut self, id: Uuid, order_id: Uuid) -> Result<(), String> {
        match self.coupons.get_mut(&id).filter(|coupon| coupon.order_id == Some(order_id)) {
            Some(coupon) => coupon.order_id = None,
            None => return Err(format!("the coupon {id} is not used by the order")),
        }
        Ok(())
    }

    fn put_back(&mut self, lines: &[ReturnedLine]) {
        for line in lines {
            self.stocks.insert(line.product_id.clone(), line.stock_after);
        }
    }

    fn order_cancelled(&mut self, f: &mut OrderCancelled) -> Result<(), String> {
        self.expect_order(f.order_id.0, &[OrderStatus::Pending, OrderStatus::Paid])?;
        let outside = f.more.as_ref().is_some_and(|more| more.paid_outside.is_some());
        let pending = self.orders.get(&f.order_id.0) == Some(&OrderStatus::Pending);
        if !pending {
            self.credited(&f.user_id, f.refund)?;
        }
        self.return_lines(&mut f.lines)?;
        if let (Some(id), true) = (f.coupon_id, f.coupon_returned) {
            self.return_coupon(id.0, f.order_id.0)?;
        }
        self.put_back(&f.lines);
        f.balance_after = match pending {
            true => self.released(&f.user_id, f.refund),
            false => self.balance(&f.user_id) + f.refund,
        };
        if !outside || f.refund > 0 {
            self.wallets.insert(f.user_id.clone(), f.balance_after);
        }
        let counts = f.more.as_mut().map_or(&mut [][..], |more| &mut more.counts);
        for count in counts {
            let quantity = line_of(count, &f.lines, |line| line.quantity);
            self.count(&f.user_id, count, |bought| bought.saturating_sub(quantity));
        }
        self.orders.insert(f.order_id.0, OrderStatus::Cancelled);
        Ok(())
    }

    /// A PUT states the whole product except its stock. If the creation was left out, a later PUT
    /// creates the product, with stock 0.
    fn product_put(&mut self, f: &mut ProductPut) -> Result<(), String> {
        match self.stocks.get(&f.product_id) {
            Some(_) if f.created => {
                return Err(format!("the product {} already exists", f.product_id));
            }
            Some(stock) => f.stock_after = *stock,
            None if f.created => {}
            None => (f.created, f.stock_after) = (true, 0),
        }
        self.stocks.insert(f.product_id.clone(), f.stock_after);
        Ok(())
    }

    fn stock_adjusted(&mut self, f: &mut StockAdjusted) -> Result<(), String> {
        let Some(stock) = self.stocks.get_mut(&f.product_id) else {
            return Err(format!("the product {} does not exist", f.product_id));
        };
        let Some(after) = stock.checked_add_signed(f.delta) else {
            return Err(format!(
                "the stock of the product is {stock}, the adjustment removes {}",
                -f.delta
            ));
        };
        (f.stock_after, *stock) = (after, after);
        Ok(())
    }

    fn template_put(&mut self, f: &mut TemplatePut) -> Result<(), String> {
        let max_issued = f.terms.max_issued;
        match self.templates.get_mut(&f.template_id) {
            Some(_) if f.created => {
                return Err(format!("the template {} already exists", f.template_id));
            }
            Some(template) if template.issued > max_issued => {
                return Err(format!(
                    "{} coupons are issued, the new limit is {max_issued}",
                    template.issued
                ));
            }
            Some(template) => (f.issued, template.max_issued) = (template.issued, max_issued),
            None => {
                (f.created, f.issued) = (true, 0);
                let template = Issuing { max_issued, ..Issuing::default() };
                self.templates.insert(f.template_id.clone(), template);
            }
        }
        if let Some(template) = self.templates.get_mut(&f.template_id) {
            template.terms_number = f.terms_number;
            template.later_terms.extend(f.terms_number);
        }
        Ok(())
    }
}

/// The quantity of the line that `count` concerns.
fn line_of<T>(count: &PurchaseCount, lines: &[T], quantity: impl Fn(&T) -> u64) -> u64 {
    usize::try_from(count.line).ok().and_then(|at| lines.get(at)).map_or(0, quantity)
}
