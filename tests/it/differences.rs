//! Tests of applying by differences, without servers. Random days of a shop are decided by the
//! model, either with nothing skipped or with random facts skipped.

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;
use rushgate::domain::fact::{Idempotency, TemplateTerms};
use rushgate::domain::wire::{Blob, Id, pack};
use rushgate::domain::{OrderStatus, ProductStatus, SaleRules};
use rushgate::log::entry::{FORMAT_VERSION, chain_tip, genesis_tip};
use rushgate::log::{Entry, RawEntry};
use rushgate::reconciler::differences::{Outcome, Picture, Skips, Untrue, rebase};
use uuid::Uuid;

use crate::history::model::{
    Fact, Order, PENDING_LIMIT, PayOutside, Request, Shop, Verdict, facts_of, kind, packed,
    request_of, wallet_amount, without_images,
};

const DAYS: u64 = 300;
const REQUESTS: usize = 120;
const START_MS: i64 = 1_800_000_000_000;

fn one_of<'a>(rng: &mut Rng, all: &[&'a str]) -> &'a str {
    all[rng.usize(..all.len())]
}

fn request(rng: &mut Rng, shop: &Shop) -> Request {
    let user_id = one_of(rng, &["ann", "bob", "cat", "dan"]).to_owned();
    let product_id = one_of(rng, &["mug", "pen", "cap"]).to_owned();
    let template_id = one_of(rng, &["spring", "summer"]).to_owned();
    match rng.u8(..100) {
        0..10 => {
            let status =
                if rng.u8(..8) == 0 { ProductStatus::Suspended } else { ProductStatus::OnSale };
            let stock = (!shop.products.contains_key(&product_id)).then(|| rng.u64(..20));
            let name = format!("name {}", rng.u8(..9));
            // A limit that nobody reaches: whether it is kept is not judged again.
            let per_user_limit = (rng.u8(..3) == 0).then_some(1_000);
            let rules = SaleRules { per_user_limit, ..SaleRules::default() };
            let price = 100 * rng.u64(1..9);
            Request::PutProduct { product_id, name, price, status, stock, rules }
        }
        10..16 => Request::PutTemplate { template_id, terms: terms(rng) },
        16..24 => Request::AdjustStock {
            product_id,
            delta: rng.i64(-6..12),
            reason: None,
            highest: 1_000_000,
        },
        24..42 => {
            // Sometimes up to the balance limit, so that a refund or a charge may not fit.
            let amount = if rng.u8(..6) == 0 { 990_000 } else { 100 * rng.u64(..12) };
            Request::ChargeWallet { user_id, amount, charge_id: id(rng) }
        }
        42..58 => Request::IssueCoupon { template_id, user_id, coupon_id: id(rng) },
        58..85 => {
            let own: Vec<Id> = shop.coupons_of.get(&user_id).cloned().unwrap_or_default();
            let coupon_id = if rng.bool() { rng.choice(own) } else { None };
            let lines = vec![(product_id, rng.u64(1..4))];
            let outside = (rng.u8(..3) == 0).then(|| PayOutside {
                wallet_amount: 100 * rng.u64(..3),
                hold_ms: 1_000 * rng.u64(60..200),
                // One less than the model allows for each fact that is skipped.
                pending_limit: PENDING_LIMIT - 3,
            });
            Request::PlaceOrder {
                user_id,
                lines,
                coupon_id,
                expected_total: None,
                reference: None,
                outside,
                order_id: id(rng),
            }
        }
        _ => match rng.choice(shop.orders.keys().copied().collect::<Vec<_>>()) {
            Some(order_id) if rng.bool() => Request::CancelOrder { order_id },
            Some(order_id) if rng.bool() => {
                Request::ConfirmOrder { order_id, payment_reference: "paid".into() }
            }
            Some(order_id) => Request::ExpireOrder { order_id },
            None => Request::ChargeWallet { user_id, amount: 100, charge_id: id(rng) },
        },
    }
}

fn terms(rng: &mut Rng) -> TemplateTerms {
    TemplateTerms {
        name: "a coupon".into(),
        discount_type: "amount".into(),
        discount_value: 100 * rng.u64(1..5),
        discount_max: None,
        min_subtotal: 100 * rng.u64(..3),
        max_issued: rng.u64(1..6),
        issue_from: 0,
        issue_until: START_MS * 2,
    }
}

fn id(rng: &mut Rng) -> Id {
    Id(Uuid::from_u128(rng.u128(..)))
}

/// The entries of a random day, in the form that scripts write. Consecutive facts of one kind share
/// an entry.
fn day(rng: &mut Rng) -> Vec<RawEntry> {
    let (mut shop, mut facts) = (Shop::default(), Vec::<(i64, Fact)>::new());
    for n in 0..REQUESTS as i64 {
        let request = request(rng, &shop);
        let scope = format!("somebody key-{n}");
        let key = rng.bool().then(|| Idempotency { scope, request_hash: Blob(vec![7; 16]) });
        let at = START_MS + 5_000 * n;
        if let Verdict::Accepted(fact) = shop.decide(&request, key.as_ref(), at) {
            facts.push((at, fact));
        }
    }
    let (mut entries, mut tip) = (Vec::new(), genesis_tip(0, 1));
    for batch in facts.chunk_by(|a, b| kind(&a.1) == kind(&b.1)) {
        let blobs: Vec<Blob> = batch.iter().map(|(_, fact)| Blob(packed(fact))).collect();
        let payload = pack(&(FORMAT_VERSION, kind(&batch[0].1), batch[0].0, blobs)).unwrap();
        tip = chain_tip(&tip, &payload);
        let seq = entries.len() as u64 + 1;
        entries.push(RawEntry { epoch: 1, seq, payload, tip: tip.clone(), traces: vec![] });
    }
    entries
}

/// Applies all entries in order to an empty shop.
fn rebased(entries: &[RawEntry], skips: &BTreeMap<u64, Skips>) -> (Vec<Entry>, Vec<(u64, Untrue)>) {
    let (mut picture, mut kept, mut left) = (Picture::default(), Vec::new(), Vec::new());
    for raw in entries {
        let skips = skips.get(&raw.seq).cloned().unwrap_or_default();
        let (entry, untrue) = rebase(&mut picture, raw.decode().unwrap(), &skips).unwrap();
        kept.push(entry);
        left.extend(untrue.into_iter().map(|untrue| (raw.seq, untrue)));
    }
    (kept, left)
}

#[test]
fn with_nothing_skipped_every_entry_stays_as_it_is() {
    for seed in 0..DAYS {
        let entries = day(&mut Rng::with_seed(seed));
        let (kept, left) = rebased(&entries, &BTreeMap::new());
        assert_eq!(left, [], "seed {seed}");
        for (entry, raw) in kept.iter().zip(&entries) {
            assert_eq!(*entry, raw.decode().unwrap(), "seed {seed}");
        }
    }
}

/// What remains is a day that the shop's rules allow, and nothing was left out that they would have
/// allowed.
#[test]
fn without_a_skipped_fact_what_is_left_is_consistent_and_all_that_can_be() {
    let (mut gone, mut changed) = (0, 0);
    for seed in 0..DAYS {
        let mut rng = Rng::with_seed(seed);
        let entries = day(&mut rng);
        let mut skips: BTreeMap<u64, Skips> = BTreeMap::new();
        for _ in 0..rng.usize(1..4) {
            let raw = &entries[rng.usize(..entries.len())];
            let fact = rng.usize(1..=raw.decode().unwrap().facts.len());
            skips.entry(raw.seq).or_default().insert(fact, "a test".into());
        }
        let (kept, left) = rebased(&entries, &skips);
        consistent(&kept).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        // The model also judges prices and limits. If a change of those was skipped, its decisions
        // may differ.
        let puts = skips.keys().any(|seq| {
            matches!(
                entries[*seq as usize - 1].decode().unwrap().facts,
                rushgate::domain::fact::Facts::ProductsPut(_)
                    | rushgate::domain::fact::Facts::TemplatesPut(_)
            )
        });
        agrees_with_the_model(&entries, &kept, &left, !puts)
            .unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        gone += left.iter().filter(|(_, u)| u.outcome == Outcome::Gone).count();
        changed += left.iter().filter(|(_, u)| u.outcome == Outcome::Changed).count();
    }
    println!("{gone} gone, {changed} changed");
    assert!(
        gone > 200 && changed > 1_000,
        "the days have become too tame: {gone} gone, {changed} changed"
    );
}

/// Each fact of the day is kept, skipped or gone. The model must decide the kept ones as they stand
/// now, and must refuse those that are gone.
fn agrees_with_the_model(
    entries: &[RawEntry],
    kept: &[Entry],
    left: &[(u64, Untrue)],
    same_terms: bool,
) -> Result<(), String> {
    let mut shop = Shop::default();
    for (raw, entry) in entries.iter().zip(kept) {
        let mut holding = facts_of(entry.facts.clone()).into_iter().zip(&entry.raw_facts);
        for (at, fact) in facts_of(raw.decode().unwrap().facts).into_iter().enumerate() {
            let out = left.iter().find(|(seq, u)| {
                (*seq, u.fact) == (raw.seq, at + 1) && u.outcome != Outcome::Changed
            });
            let (request, key, now) = request_of(&fact);
            match out.map(|(_, u)| u.outcome) {
                Some(Outcome::Gone) if same_terms && shop.refusal(&request, now).is_none() => {
                    return Err(format!("{fact:?} is gone and could hold: {out:?}"));
                }
                Some(_) => continue,
                None => {}
            }
            let Some((holds, bytes)) = holding.next() else {
                return Err(format!("{fact:?} is nowhere"));
            };
            if without_images(&holds) != without_images(&fact) {
                return Err(format!("{fact:?} has become {holds:?}"));
            }
            if *bytes != packed(&holds) {
                return Err(format!("an idempotency record would tell otherwise than {holds:?}"));
            }
            if !same_terms {
                continue;
            }
            match shop.decide(&request, key.as_ref(), now) {
                Verdict::Accepted(expected)
                    if without_numbers(&expected) == without_numbers(&holds) => {}
                other => return Err(format!("{holds:?}; the model: {other:?}")),
            }
        }
        if holding.next().is_some() {
            return Err(format!("entry {} holds more than before", raw.seq));
        }
    }
    Ok(())
}

/// The fact without the numbers of terms and templates, which share one counter. Without a skipped
/// coupon, changed terms might have had no number of their own; that they have one is harmless.
fn without_numbers(fact: &Fact) -> Fact {
    let mut fact = fact.clone();
    match &mut fact {
        Fact::CouponIssued(f) => f.terms_number = None,
        Fact::TemplatePut(f) => (f.number, f.terms_number) = (0, None),
        _ => {}
    }
    fact
}

/// Bookkeeping from the facts alone: every after-image follows from the previous one, and nothing
/// is below zero or above a limit.
fn consistent(entries: &[Entry]) -> Result<(), String> {
    let mut books = Books::default();
    for fact in entries.iter().flat_map(|entry| facts_of(entry.facts.clone())) {
        let added = books.add(&fact).and_then(|()| books.within_limits());
        added.map_err(|why| format!("{why}: {fact:?}"))?;
    }
    Ok(())
}

#[derive(Default)]
struct Books {
    wallets: BTreeMap<String, u64>,
    stocks: BTreeMap<String, u64>,
    /// issued, limit
    templates: BTreeMap<String, (u64, u64)>,
    /// The numbers of terms that are not their template's own.
    later_terms: BTreeSet<u64>,
    /// owner, template, used by
    coupons: BTreeMap<Id, (String, String, Option<Id>)>,
    orders: BTreeMap<Id, Order>,
}

impl Books {
    fn balance(&mut self, user: &str, change: i64, after: u64) -> Result<(), &'static str> {
        let balance = self.wallets.entry(user.to_owned()).or_default();
        *balance = balance.checked_add_signed(change).ok_or("a balance below zero")?;
        if *balance > 1_000_000 { Err("a balance over the limit") } else { same(*balance, after) }
    }

    fn stock(&mut self, product: &str, change: i64, after: u64) -> Result<(), &'static str> {
        let stock = self.stocks.get_mut(product).ok_or("no such product")?;
        *stock = stock.checked_add_signed(change).ok_or("a stock below zero")?;
        same(*stock, after)
    }

    fn coupon_back(&mut self, order: Id, coupon: Option<Id>) -> Result<(), &'static str> {
        let Some(id) = coupon else { return Ok(()) };
        let coupon = self.coupons.get_mut(&id).ok_or("a coupon that was not issued")?;
        if coupon.2.take() == Some(order) { Ok(()) } else { Err("another order's coupon") }
    }

    /// With what pending orders took, no balance is over the limit.
    fn within_limits(&self) -> Result<(), &'static str> {
        let mut all = self.wallets.clone();
        for order in self.orders.values().filter(|order| order.status() == OrderStatus::Pending) {
            *all.entry(order.placed.user_id.clone()).or_default() += order.wallet_amount();
        }
        let over = all.values().any(|balance| *balance > 1_000_000);
        if over { Err("a balance over the limit, with what is held") } else { Ok(()) }
    }

    fn add(&mut self, fact: &Fact) -> Result<(), &'static str> {
        match fact {
            Fact::CouponIssued(f) => {
                if f.terms_number.is_some_and(|number| !self.later_terms.contains(&number)) {
                    return Err("terms that were never in force");
                }
                let (issued, limit) =
                    self.templates.get_mut(&f.template_id).ok_or("no such template")?;
                *issued += 1;
                same(*issued, f.serial)?;
                same(*limit, f.serial + f.remaining)?;
                if self.coupons.values().any(|(u, t, _)| (u, t) == (&f.user_id, &f.template_id)) {
                    return Err("a second coupon");
                }
                self.coupons.insert(f.coupon_id, (f.user_id.clone(), f.template_id.clone(), None));
            }
            Fact::WalletCharged(f) => {
                self.balance(&f.user_id, f.amount.cast_signed(), f.balance_after)?
            }
            Fact::OrderPlaced(f) => {
                self.balance(&f.user_id, -wallet_amount(f).cast_signed(), f.balance_after)?;
                for line in &f.lines {
                    self.stock(&line.product_id, -line.quantity.cast_signed(), line.stock_after)?;
                }
                if let Some(id) = f.coupon_id {
                    let coupon = self.coupons.get_mut(&id).ok_or("a coupon that was not issued")?;
                    if coupon.0 != f.user_id || coupon.2.replace(f.order_id).is_some() {
                        return Err("a coupon of somebody else, or used before");
                    }
                }
                self.orders.insert(f.order_id, Order::new(f.clone()));
            }
            Fact::OrderCancelled(f) => {
                self.balance(&f.user_id, f.refund.cast_signed(), f.balance_after)?;
                for line in &f.lines {
                    self.stock(&line.product_id, line.quantity.cast_signed(), line.stock_after)?;
                }
                let order =
                    self.orders.get_mut(&f.order_id).ok_or("an order that was not placed")?;
                same(order.wallet_amount(), f.refund)?;
                if !matches!(order.status(), OrderStatus::Paid | OrderStatus::Pending) {
                    return Err("cancelled twice, or after it has expired");
                }
                order.cancelled = Some(f.clone());
                self.coupon_back(f.order_id, f.coupon_id.filter(|_| f.coupon_returned))?;
            }
            Fact::OrderConfirmed(f) => {
                let order =
                    self.orders.get_mut(&f.order_id).ok_or("an order that was not placed")?;
                if order.status() != OrderStatus::Pending {
                    return Err("confirmed, and not pending");
                }
                order.confirmed = Some(f.clone());
                self.balance(&f.order.user_id, 0, f.balance_after)?;
            }
            Fact::OrderExpired(f) => {
                self.balance(&f.user_id, f.refund.cast_signed(), f.balance_after)?;
                for line in &f.lines {
                    self.stock(&line.product_id, line.quantity.cast_signed(), line.stock_after)?;
                }
                let order =
                    self.orders.get_mut(&f.order_id).ok_or("an order that was not placed")?;
                same(order.wallet_amount(), f.refund)?;
                if order.status() != OrderStatus::Pending {
                    return Err("expired, and not pending");
                }
                order.expired = Some(f.clone());
                self.coupon_back(f.order_id, f.coupon_id.filter(|_| f.coupon_returned))?;
            }
            Fact::ProductPut(f) => match self.stocks.get(&f.product_id) {
                Some(stock) => {
                    same(u64::from(f.created), 0)?;
                    same(*stock, f.stock_after)?;
                }
                None => {
                    same(u64::from(f.created), 1)?;
                    self.stocks.insert(f.product_id.clone(), f.stock_after);
                }
            },
            Fact::StockAdjusted(f) => self.stock(&f.product_id, f.delta, f.stock_after)?,
            Fact::TemplatePut(f) => {
                let known = self.templates.contains_key(&f.template_id);
                same(u64::from(f.created), u64::from(!known))?;
                let (issued, limit) = self.templates.entry(f.template_id.clone()).or_default();
                *limit = f.terms.max_issued;
                self.later_terms.extend(f.terms_number);
                same(*issued, f.issued)?;
                if *issued > *limit {
                    return Err("a limit below what is issued");
                }
            }
        }
        Ok(())
    }
}

fn same(is: u64, told: u64) -> Result<(), &'static str> {
    if is == told { Ok(()) } else { Err("an after-image that does not follow from the one before") }
}
