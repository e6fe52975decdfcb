//! A case's steps, as data.
//!
//! A plan never names anything that comes into being while it runs. It says "the user's second
//! coupon" or "as many as are left", and the index wraps round the elements that exist when the
//! step is taken ([`nth`]). So any part of a plan can be removed or simplified, and the rest is
//! still a valid plan. Shrinking depends on that.

use std::fmt;

use rushgate::domain::{CouponStatus, ProductStatus};

use super::kind::Kind;

/// Few of each, so that requests collide. The last of each is never created, so that plans contain
/// unknown ids. Their order by bytes differs from their alphabetical order.
pub const USERS: [&str; 6] = ["ann", "Bob", "c.d_e-f", LONGEST_ID, "0", "nobody"];
pub const PRODUCTS: [&str; 5 + SHELF] = products();
pub const TEMPLATES: [&str; 5] = ["spring", "9.9", LONGEST_ID, "-", "never"];
/// Additional products for large orders; they stand before the last one.
pub const SHELF: usize = 60;
/// The index of the first one.
pub const SHELF_FROM: usize = 4;
const LONGEST_ID: &str = "zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzZ";

#[rustfmt::skip]
const SHELF_IDS: [&str; SHELF] = [
    "s00", "s01", "s02", "s03", "s04", "s05", "s06", "s07", "s08", "s09", "s10", "s11",
    "s12", "s13", "s14", "s15", "s16", "s17", "s18", "s19", "s20", "s21", "s22", "s23",
    "s24", "s25", "s26", "s27", "s28", "s29", "s30", "s31", "s32", "s33", "s34", "s35",
    "s36", "s37", "s38", "s39", "s40", "s41", "s42", "s43", "s44", "s45", "s46", "s47",
    "s48", "s49", "s50", "s51", "s52", "s53", "s54", "s55", "s56", "s57", "s58", "s59",
];

const fn products() -> [&'static str; 5 + SHELF] {
    let mut all = ["nothing"; 5 + SHELF];
    (all[0], all[1], all[2], all[3]) = ("mug", "Mug", LONGEST_ID, "_");
    let mut n = 0;
    while n < SHELF {
        all[SHELF_FROM + n] = SHELF_IDS[n];
        n += 1;
    }
    all
}

/// An index into existing elements: see [`nth`].
pub type Nth = u8;

/// The `n`th element; the index wraps round. `None` if there is no element.
pub fn nth<T>(all: &[T], n: Nth) -> Option<&T> {
    all.get(usize::from(n) % all.len().max(1))
}

#[derive(Clone, Debug)]
pub struct Case {
    pub start: Start,
    pub epoch: u64,
    pub steps: Vec<PlannedStep>,
}

impl Case {
    pub fn requests(&self) -> usize {
        let jobs = self
            .steps
            .iter()
            .map(|step| if let PlannedStep::Batch(batch) = step { batch.jobs.len() } else { 0 });
        jobs.sum()
    }

    /// The case without its `n`th part. The parts of a case are its steps, and each step is
    /// followed by its requests.
    pub fn without(&self, n: usize) -> Option<Self> {
        let mut parts = self.steps.iter().enumerate().flat_map(|(step, of)| {
            let jobs = if let PlannedStep::Batch(batch) = of { batch.jobs.len() } else { 0 };
            std::iter::once((step, None)).chain((0..jobs).map(move |job| (step, Some(job))))
        });
        let (step, job) = parts.nth(n)?;
        let mut shorter = self.clone();
        match (job, &mut shorter.steps[step]) {
            (Some(job), PlannedStep::Batch(batch)) => drop(batch.jobs.remove(job)),
            _ => drop(shorter.steps.remove(step)),
        }
        Some(shorter)
    }
}

/// One line per step and per request.
impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:?}, epoch {}", self.start, self.epoch)?;
        for (n, step) in self.steps.iter().enumerate() {
            let PlannedStep::Batch(Batch { kind, claim, jobs }) = step else {
                writeln!(f, "{n} {step:?}")?;
                continue;
            };
            writeln!(f, "{n} {kind:?} {claim:?}")?;
            jobs.iter().try_for_each(|job| {
                writeln!(f, "    {:?} {:?} {:?}", job.deadline, job.key, job.ask)
            })?;
        }
        Ok(())
    }
}

/// The gate's clock at the beginning of a case.
#[derive(Clone, Copy, Debug)]
pub enum Start {
    /// Far ahead of the server's clock, so that time advances only as the plan says. It begins this
    /// long after a midnight.
    Ahead { after_midnight_ms: i64 },
    /// Behind the server's clock, so that the server's time is used.
    Behind { by_ms: i64 },
}

#[derive(Clone, Debug)]
pub enum PlannedStep {
    Batch(Batch),
    Clock(Clock),
    Read(Vec<Read>),
}

/// One call of one script.
#[derive(Clone, Debug)]
pub struct Batch {
    pub kind: Kind,
    pub claim: Claim,
    pub jobs: Vec<Job>,
}

/// The caller's claims about the cell.
#[derive(Clone, Copy, Debug)]
pub enum Claim {
    /// Correct; the last entry has been seen.
    Last,
    /// Correct; an earlier entry has been seen, this many before the last.
    Earlier(Nth),
    /// Correct; no entry has been seen yet.
    None,
    // With the following claims the whole batch must be refused.
    OtherEpoch,
    OtherDay,
    /// Claims an entry that does not exist yet.
    Later,
    /// Claims a different entry in the place of an existing one; 0 means the last.
    Other(Nth),
    /// PostgreSQL is as far behind as the log limit allows.
    Backlog,
    /// The cell is closed.
    Closed,
}

#[derive(Clone, Debug)]
pub struct Job {
    pub deadline: Deadline,
    pub key: Key,
    pub ask: Ask,
}

#[derive(Clone, Copy, Debug)]
pub enum Deadline {
    Ahead,
    /// In a minute: long past for a clock that is ahead.
    Soon,
    /// About now, if the server's clock is used, so that only the answer shows whether it has
    /// passed. Otherwise like `Soon`: a case that does not depend on real time must run the same
    /// way each time, or it could not be shrunk.
    In {
        ms: i64,
    },
    Past {
        ms: i64,
    },
}

#[derive(Clone, Copy, Debug)]
pub enum Key {
    None,
    /// One of the user's few key names.
    Name(u8),
    /// Ignores this job's own request and repeats an earlier one of the same script, with its key;
    /// 0 means the last.
    Repeat(Nth),
}

#[derive(Clone, Debug)]
pub enum Ask {
    Issue {
        template: usize,
        user: usize,
    },
    Charge {
        user: usize,
        amount: Amount,
    },
    CellState {
        user: usize,
        lines: Vec<(usize, Quantity)>,
        coupon: CouponOf,
        expected: Expected,
        payment: Payment,
        reference: Option<&'static str>,
    },
    Cancel {
        order: OrderOf,
        epoch: ReadIn,
        /// The order was read while it was pending, if it ever was.
        as_pending: bool,
    },
    Confirm {
        order: OrderOf,
        reference: &'static str,
    },
    Expire {
        order: OrderOf,
    },
    PutProduct {
        product: usize,
        name: &'static str,
        price: u64,
        status: ProductStatus,
        stock: Stock,
        rules: Rules,
    },
    Adjust {
        product: usize,
        delta: Delta,
        reason: Option<&'static str>,
        highest: u64,
    },
    PutTemplate {
        template: usize,
        terms: Terms,
    },
}

#[derive(Clone, Copy, Debug)]
pub enum Amount {
    Won(u64),
    /// Up to the balance limit, or beyond it.
    ToLimit {
        beyond: u64,
    },
    /// An amount that makes the balance a multiple of a product's price, minus `less`.
    ToPrice {
        product: usize,
        less: u64,
    },
}

#[derive(Clone, Copy, Debug)]
pub enum Quantity {
    Pieces(u64),
    /// As many as the user can pay for, plus `beyond`, if that many exist.
    Affordable {
        beyond: u64,
    },
    /// All that are left, plus `beyond`.
    Left {
        beyond: u64,
    },
}

#[derive(Clone, Copy, Debug)]
pub enum CouponOf {
    None,
    /// One of the user's own coupons that no order has used.
    Unused(Nth),
    /// One of the user's own coupons.
    Own(Nth),
    /// Any coupon that was issued.
    Any(Nth),
    /// A coupon that was never issued.
    Unknown,
}

#[derive(Clone, Copy, Debug)]
pub enum Expected {
    None,
    /// The order's real total (if it can be determined), plus `beyond`.
    Total {
        beyond: u64,
    },
}

/// How an order is paid.
#[derive(Clone, Copy, Debug)]
pub enum Payment {
    Wallet,
    Outside { wallet: WalletPart, hold_ms: u64, pending_limit: u64 },
}

/// Won to take from the wallet for an order that is paid outside.
#[derive(Clone, Copy, Debug)]
pub enum WalletPart {
    Won(u64),
    /// The order's total (if it can be determined), minus `less`.
    Total {
        less: u64,
    },
    /// The balance, plus `beyond`.
    Balance {
        beyond: u64,
    },
    /// The order's total, plus `beyond`.
    AboveTotal {
        beyond: u64,
    },
}

/// The rules of a product; times are relative to now.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rules {
    pub from_ms: Option<i64>,
    pub until_ms: Option<i64>,
    pub per_user_limit: Option<u64>,
    pub attributes: Option<&'static str>,
}

#[derive(Clone, Copy, Debug)]
pub enum OrderOf {
    /// One that is paid or pending; 0 means the last.
    Live(Nth),
    /// One that is pending; 0 means the last.
    Pending(Nth),
    /// One that is pending; 0 means the one whose hold ends first.
    Due(Nth),
    /// One that is paid or pending and has used a coupon; 0 means the last.
    WithCoupon(Nth),
    /// Any order; 0 means the last.
    Placed(Nth),
    /// An order that PostgreSQL never had. The script cannot know that; it only sees that the user
    /// or a product is unknown.
    Invented { user: usize },
}

/// The epoch in which the order was read from PostgreSQL.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ReadIn {
    This,
    Earlier,
    Later,
}

#[derive(Clone, Copy, Debug)]
pub enum Stock {
    None,
    /// Only if the product does not exist yet.
    IfNew(u64),
    Given(u64),
}

#[derive(Clone, Copy, Debug)]
pub enum Delta {
    Pieces(i64),
    /// Removes all that are left, plus `beyond`.
    Left {
        beyond: u64,
    },
    /// Up to the maximum stock, plus `beyond`.
    ToHighest {
        beyond: u64,
    },
}

#[derive(Clone, Debug)]
pub struct Terms {
    pub name: &'static str,
    /// Type, value, maximum.
    pub discount: (&'static str, u64, Option<u64>),
    pub min_subtotal: u64,
    pub max_issued: u64,
    /// Start of the window, relative to now.
    pub from_ms: i64,
    pub length_ms: i64,
}

/// Moves the gate's clock.
#[derive(Clone, Copy, Debug)]
#[rustfmt::skip]
pub enum Clock {
    /// Sets it back, as if nothing had been decided for this long. If the server's clock is used,
    /// that one is later and counts.
    Idle { ms: i64 },
    // The others move it forward.
    By { ms: i64 },
    ToMidnight { beyond_ms: i64 },
    /// The start or end of a window, still in the future.
    ToWindow { border: Nth, beyond_ms: i64 },
    /// The expiry of a coupon; with `used`, of one that an order has used.
    ToCouponsEnd { used: bool, coupon: Nth, beyond_ms: i64 },
    ToKeysEnd { key: Nth, beyond_ms: i64 },
    /// The end of a pending order's hold; 0 means the first.
    ToHoldEnd { order: Nth, beyond_ms: i64 },
    /// The start or end of a product's sale, still in the future.
    ToSale { border: Nth, beyond_ms: i64 },
}

#[derive(Clone, Debug)]
pub enum Read {
    Balance(usize),
    Products(Vec<usize>),
    /// Products and templates together.
    Watched(Vec<usize>, Vec<usize>),
    ListProducts {
        after: Option<usize>,
        limit: usize,
    },
    Templates(Vec<usize>),
    ListTemplates {
        after: Option<usize>,
        limit: usize,
    },
    /// A page of a user's coupons: with this status, at most `limit`, after a given one.
    Held {
        user: usize,
        status: Option<CouponStatus>,
        limit: usize,
        after: Option<AfterCoupon>,
    },
    Coupon {
        user: usize,
        coupon: AfterCoupon,
    },
    /// The template's first terms, or one of its versions.
    Terms {
        template: usize,
        version: Option<Nth>,
    },
    /// What a user has bought, under every limit there ever was.
    Bought(usize),
    Pending(usize),
    Due {
        most: usize,
    },
}

#[derive(Clone, Copy, Debug)]
pub enum AfterCoupon {
    Own(Nth),
    Unknown,
}
