//! What a case does, as data.
//!
//! A plan names nothing that comes into being while it runs: it says "the user's second coupon" or "as many as are left",
//! counted round among what is there when the step is taken ([`nth`]). So every part of a plan can be left out or made
//! smaller, and what is left is still a plan: that is what shrinking needs.

use std::fmt;

use rushgate::domain::{CouponStatus, ProductStatus};

use super::kind::Kind;

/// Few of everything, so that requests collide; the last of each is never made, so that there are unknown ones.
/// They sort by their bytes otherwise than by their letters.
pub const USERS: [&str; 6] = ["ann", "Bob", "c.d_e-f", LONGEST_ID, "0", "nobody"];
pub const PRODUCTS: [&str; 5 + SHELF] = products();
pub const TEMPLATES: [&str; 5] = ["spring", "9.9", LONGEST_ID, "-", "never"];
/// Products that only large orders are of; they stand before the last.
pub const SHELF: usize = 60;
/// Where they begin.
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

/// Which of those that are there: see [`nth`].
pub type Nth = u8;

/// The `n`th element, counted round; `None` when there is none.
pub fn nth<T>(all: &[T], n: Nth) -> Option<&T> {
    all.get(usize::from(n) % all.len().max(1))
}

#[derive(Clone, Debug)]
pub struct Case {
    pub start: Start,
    pub epoch: u64,
    pub steps: Vec<Step>,
}

impl Case {
    pub fn requests(&self) -> usize {
        let jobs =
            self.steps.iter().map(|step| if let Step::Batch(batch) = step { batch.jobs.len() } else { 0 });
        jobs.sum()
    }

    /// The case without its `n`th part, where each step is a part and then each of its requests.
    pub fn without(&self, n: usize) -> Option<Self> {
        let mut parts = self.steps.iter().enumerate().flat_map(|(step, of)| {
            let jobs = if let Step::Batch(batch) = of { batch.jobs.len() } else { 0 };
            std::iter::once((step, None)).chain((0..jobs).map(move |job| (step, Some(job))))
        });
        let (step, job) = parts.nth(n)?;
        let mut shorter = self.clone();
        match (job, &mut shorter.steps[step]) {
            (Some(job), Step::Batch(batch)) => drop(batch.jobs.remove(job)),
            _ => drop(shorter.steps.remove(step)),
        }
        Some(shorter)
    }
}

/// One step a line, and one request.
impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:?}, epoch {}", self.start, self.epoch)?;
        for (n, step) in self.steps.iter().enumerate() {
            let Step::Batch(Batch { kind, claim, jobs }) = step else {
                writeln!(f, "{n} {step:?}")?;
                continue;
            };
            writeln!(f, "{n} {kind:?} {claim:?}")?;
            jobs.iter()
                .try_for_each(|job| writeln!(f, "    {:?} {:?} {:?}", job.deadline, job.key, job.ask))?;
        }
        Ok(())
    }
}

/// The gate's clock when a case begins.
#[derive(Clone, Copy, Debug)]
pub enum Start {
    /// Far ahead of the server's, so that time stands still but for what a plan says; this long after a midnight.
    Ahead { after_midnight_ms: i64 },
    /// Behind the server's, so that the server's is used.
    Behind { by_ms: i64 },
}

#[derive(Clone, Debug)]
pub enum Step {
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

/// What the caller says that it knows of the cell.
#[derive(Clone, Copy, Debug)]
pub enum Claim {
    /// The truth, having seen the last entry.
    Last,
    /// The truth, having seen an earlier one, so many before.
    Earlier(Nth),
    /// The truth, having seen none yet.
    None,
    // From here on the whole batch is to be refused.
    OtherEpoch,
    OtherDay,
    /// It has seen an entry that is not there yet.
    Later,
    /// It has seen another entry in the place of one that is there; 0: of the last one.
    Other(Nth),
    /// PostgreSQL is as far behind as it may be.
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
    /// In a minute: long before a clock that is ahead.
    Soon,
    /// Where the server's clock is used: about now, so that only the answer shows whether it has passed. Elsewhere as
    /// `Soon`: what time has no part in goes the same way each time it is run, or it could not be made smaller.
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
    /// One of the user's few names for keys.
    Name(u8),
    /// Instead of what this job asks, repeats an earlier request (of the same script) with its key; 0: the last one.
    Repeat(Nth),
}

#[derive(Clone, Debug)]
pub enum Ask {
    Issue { template: usize, user: usize },
    Charge { user: usize, amount: Amount },
    Place { user: usize, lines: Vec<(usize, Quantity)>, coupon: CouponOf, expected: Expected },
    Cancel { order: OrderOf, epoch: ReadIn },
    PutProduct { product: usize, name: &'static str, price: u64, status: ProductStatus, stock: Stock },
    Adjust { product: usize, delta: Delta, reason: Option<&'static str>, highest: u64 },
    PutTemplate { template: usize, terms: Terms },
}

#[derive(Clone, Copy, Debug)]
pub enum Amount {
    Won(u64),
    /// Up to the limit of the balance, or beyond it.
    ToLimit {
        beyond: u64,
    },
    /// As much as makes the balance a multiple of a product's price, less so much.
    ToPrice {
        product: usize,
        less: u64,
    },
}

#[derive(Clone, Copy, Debug)]
pub enum Quantity {
    Pieces(u64),
    /// All that the user can pay, and some more; as far as there are so many.
    Affordable {
        beyond: u64,
    },
    /// All that are left, and some more.
    Left {
        beyond: u64,
    },
}

#[derive(Clone, Copy, Debug)]
pub enum CouponOf {
    None,
    /// One of the user's own that no order has used.
    Unused(Nth),
    /// One of the user's own.
    Own(Nth),
    /// Any that was issued.
    Any(Nth),
    /// None that was issued.
    Unknown,
}

#[derive(Clone, Copy, Debug)]
pub enum Expected {
    None,
    /// What the order costs (where that can be said), and some more.
    Total {
        beyond: u64,
    },
}

#[derive(Clone, Copy, Debug)]
pub enum OrderOf {
    /// One that is not cancelled; 0: the last one.
    Paid(Nth),
    /// One that is not cancelled and has used a coupon; 0: the last one.
    WithCoupon(Nth),
    /// Any; 0: the last one.
    Placed(Nth),
    /// One that PostgreSQL never had: the script does not know that, it only sees that user or product are unknown.
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
    /// If the product is to be made.
    IfNew(u64),
    Given(u64),
}

#[derive(Clone, Copy, Debug)]
pub enum Delta {
    Pieces(i64),
    /// All that are left, and some more, are taken away.
    Left {
        beyond: u64,
    },
    /// Up to the highest stock, and some more.
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
    /// The window's beginning, from now.
    pub from_ms: i64,
    pub length_ms: i64,
}

/// Moves the gate's clock.
#[derive(Clone, Copy, Debug)]
#[rustfmt::skip]
pub enum Clock {
    /// Back, as if nothing had been decided for so long; where the server's clock is used, which is later.
    Idle { ms: i64 },
    // The others move it forward.
    By { ms: i64 },
    ToMidnight { beyond_ms: i64 },
    /// The beginning or end of a window that is still to come.
    ToWindow { border: Nth, beyond_ms: i64 },
    /// Of a coupon that an order has used, or of any.
    ToCouponsEnd { used: bool, coupon: Nth, beyond_ms: i64 },
    ToKeysEnd { key: Nth, beyond_ms: i64 },
}

#[derive(Clone, Debug)]
pub enum Read {
    Balance(usize),
    Products(Vec<usize>),
    ListProducts {
        after: Option<usize>,
        limit: usize,
    },
    Templates(Vec<usize>),
    ListTemplates {
        after: Option<usize>,
        limit: usize,
    },
    /// A user's coupons: of this status, so many, after that one.
    Held {
        user: usize,
        status: Option<CouponStatus>,
        limit: usize,
        after: Option<AfterCoupon>,
    },
}

#[derive(Clone, Copy, Debug)]
pub enum AfterCoupon {
    Own(Nth),
    Unknown,
}
