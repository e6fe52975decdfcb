//! What a case does, as data, and how such data are made up.
//!
//! A plan names nothing that comes into being while it runs: it says "the user's second coupon" or "as many as are left",
//! counted round among what is there when the step is taken ([`nth`]). So every part of a plan can be left out or made
//! smaller, and what is left is still a plan: that is what shrinking needs.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use rushgate::domain::ProductStatus;
use rushgate::domain::limits::*;

use super::kind::Kind;

/// Few of everything, so that requests collide; the last of each is never made, so that there are unknown ones.
/// They sort by their bytes otherwise than by their letters.
pub const USERS: [&str; 6] = ["ann", "Bob", "c.d_e-f", LONGEST_ID, "0", "nobody"];
pub const PRODUCTS: [&str; 5] = ["mug", "Mug", LONGEST_ID, "_", "nothing"];
pub const TEMPLATES: [&str; 5] = ["spring", "9.9", LONGEST_ID, "-", "never"];
const LONGEST_ID: &str = "zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzZ";

const SECOND_MS: i64 = 1_000;
const HOUR_MS: i64 = 3_600 * SECOND_MS;
const DAY_MS: i64 = 24 * HOUR_MS;
const YEAR_MS: i64 = 366 * DAY_MS;

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
    /// The truth, having seen an earlier one.
    Earlier(Nth),
    /// The truth, having seen none yet.
    None,
    // From here on the whole batch is to be refused.
    OtherEpoch,
    OtherDay,
    /// It has seen an entry that is not there yet.
    Later,
    /// It has seen another entry in the place of one that is there.
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
    /// About now, so that only the answer shows whether it has passed; or later, but before a clock that is ahead.
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
    PutProduct { product: usize, name: &'static str, price: u64, status: ProductStatus, stock: Option<u64> },
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
    /// All that the user can pay, and some more.
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

/// Sets the gate's clock.
#[derive(Clone, Copy, Debug)]
pub enum Clock {
    By {
        ms: i64,
    },
    /// Only where the server's clock is used: as if nothing had been decided for so long.
    Idle {
        ms: i64,
    },
    ToMidnight {
        beyond_ms: i64,
    },
    ToWindow {
        template: usize,
        end: bool,
        beyond_ms: i64,
    },
    ToCouponsEnd {
        coupon: Nth,
        beyond_ms: i64,
    },
    ToKeysEnd {
        key: Nth,
        beyond_ms: i64,
    },
}

#[derive(Clone, Debug)]
pub enum Read {
    Balance(usize),
    Products(Vec<usize>),
    ListProducts { after: Option<usize>, limit: usize },
    Templates(Vec<usize>),
    ListTemplates { after: Option<usize>, limit: usize },
    Held(usize),
}

// ---- how plans are made up -------------------------------------------------------------------------------------------

fn anybody() -> impl Strategy<Value = usize> {
    0..USERS.len()
}
fn somebody() -> impl Strategy<Value = usize> {
    0..USERS.len() - 1
}
/// Any product or template.
fn anything() -> impl Strategy<Value = usize> {
    0..PRODUCTS.len()
}
/// Seldom one that is never made: else nearly every order of many lines would name such a one.
fn nearly_anything() -> impl Strategy<Value = usize> {
    prop_oneof![16 => something(), 1 => anything()]
}
fn something() -> impl Strategy<Value = usize> {
    0..PRODUCTS.len() - 1
}

/// One less, exact, one more.
fn beyond() -> impl Strategy<Value = u64> {
    prop_oneof![3 => Just(0u64), 2 => Just(1u64), 1 => 2..50u64]
}
fn beyond_ms() -> impl Strategy<Value = i64> {
    prop_oneof![3 => Just(0i64), 2 => Just(-1i64), 1 => Just(1i64), 1 => 2..5_000i64]
}

pub fn case() -> impl Strategy<Value = Case> {
    let start = prop_oneof![
        4 => (0..DAY_MS).prop_map(|after_midnight_ms| Start::Ahead { after_midnight_ms }),
        1 => (0..2 * HOUR_MS).prop_map(|by_ms| Start::Behind { by_ms }),
    ];
    // a shop to begin with: without products, templates and wallets all else is refused
    let opening = (
        batch_of(Kind::PutProduct, Just(Claim::Last), 6..13),
        batch_of(Kind::PutTemplate, Just(Claim::Last), 4..10),
        batch_of(Kind::ChargeWallet, Just(Claim::Last), 6..20),
    );
    (start, 2..9u64, opening, vec(step(), 1..45)).prop_map(
        |(start, epoch, (products, templates, wallets), rest)| {
            let mut steps: Vec<Step> = [products, templates, wallets].into_iter().map(Step::Batch).collect();
            steps.extend(rest);
            Case { start, epoch, steps }
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let kinds = [
        (Kind::PlaceOrder, 9),
        (Kind::IssueCoupon, 5),
        (Kind::ChargeWallet, 4),
        (Kind::CancelOrder, 4),
        (Kind::PutProduct, 2),
        (Kind::AdjustStock, 2),
        (Kind::PutTemplate, 2),
    ];
    let batches = kinds.map(|(kind, weight)| (weight, batch(kind).prop_map(Step::Batch).boxed()));
    let others =
        [(6, clock().prop_map(Step::Clock).boxed()), (2, vec(read(), 1..6).prop_map(Step::Read).boxed())];
    proptest::strategy::Union::new_weighted(batches.into_iter().chain(others).collect())
}

fn batch(kind: Kind) -> impl Strategy<Value = Batch> {
    prop_oneof![
        4 => batch_of(kind, claim(), 1..5),
        4 => batch_of(kind, claim(), 5..16),
        2 => batch_of(kind, claim(), 16..41),
    ]
}

fn batch_of(
    kind: Kind,
    claim: impl Strategy<Value = Claim>,
    size: std::ops::Range<usize>,
) -> impl Strategy<Value = Batch> {
    (claim, vec(job(kind), size)).prop_map(move |(claim, jobs)| Batch { kind, claim, jobs })
}

fn claim() -> impl Strategy<Value = Claim> {
    prop_oneof![
        40 => Just(Claim::Last),
        4 => any::<Nth>().prop_map(Claim::Earlier),
        2 => Just(Claim::None),
        1 => select(vec![Claim::OtherEpoch, Claim::OtherDay, Claim::Later, Claim::Backlog, Claim::Closed]),
        1 => any::<Nth>().prop_map(Claim::Other),
    ]
}

fn job(kind: Kind) -> impl Strategy<Value = Job> {
    let deadline = prop_oneof![
        45 => Just(Deadline::Ahead),
        2 => (1..10_000i64).prop_map(|ms| Deadline::Past { ms }),
        1 => select(vec![0, 1, 60_000]).prop_map(|ms| Deadline::In { ms }),
    ];
    (deadline, key(kind), ask(kind)).prop_map(|(deadline, key, ask)| Job { deadline, key, ask })
}

fn key(kind: Kind) -> BoxedStrategy<Key> {
    if !kind.takes_keys() {
        return Just(Key::None).boxed();
    }
    prop_oneof![
        5 => Just(Key::None),
        3 => (0..8u8).prop_map(Key::Name),
        2 => (0..12u8).prop_map(Key::Repeat),
    ]
    .boxed()
}

fn ask(kind: Kind) -> BoxedStrategy<Ask> {
    match kind {
        Kind::IssueCoupon => {
            (nearly_anything(), anybody()).prop_map(|(template, user)| Ask::Issue { template, user }).boxed()
        }
        Kind::ChargeWallet => {
            let won = [0, 1, 99, 100, 500, 2_000, 2_000, 10_000, 10_000, 100_000, 999_999, MAX_BALANCE];
            let amount = prop_oneof![
                5 => select(won.to_vec()).prop_map(Amount::Won),
                1 => beyond().prop_map(|beyond| Amount::ToLimit { beyond }),
                3 => (something(), 0..2u64).prop_map(|(product, less)| Amount::ToPrice { product, less }),
            ];
            (somebody(), amount).prop_map(|(user, amount)| Ask::Charge { user, amount }).boxed()
        }
        Kind::PlaceOrder => place().boxed(),
        Kind::CancelOrder => {
            let order = prop_oneof![
                12 => (0..8u8).prop_map(OrderOf::Paid),
                8 => (0..16u8).prop_map(OrderOf::Placed),
                1 => anybody().prop_map(|user| OrderOf::Invented { user }),
            ];
            let epoch =
                prop_oneof![16 => Just(ReadIn::This), 1 => Just(ReadIn::Earlier), 1 => Just(ReadIn::Later)];
            (order, epoch).prop_map(|(order, epoch)| Ask::Cancel { order, epoch }).boxed()
        }
        Kind::PutProduct => put_product().boxed(),
        Kind::AdjustStock => {
            let delta = prop_oneof![
                4 => (-4..12i64).prop_map(Delta::Pieces),
                1 => beyond().prop_map(|beyond| Delta::Left { beyond }),
                1 => beyond().prop_map(|beyond| Delta::ToHighest { beyond }),
            ];
            let reason = option::of(select(vec!["", "counted", "반품"]));
            (anything(), delta, reason, select(vec![MAX_STOCK, 40]))
                .prop_map(|(product, delta, reason, highest)| Ask::Adjust { product, delta, reason, highest })
                .boxed()
        }
        Kind::PutTemplate => {
            (something(), terms()).prop_map(|(template, terms)| Ask::PutTemplate { template, terms }).boxed()
        }
    }
}

fn place() -> impl Strategy<Value = Ask> {
    let quantity = || {
        prop_oneof![
            16 => (1..4u64).prop_map(Quantity::Pieces),
            3 => beyond().prop_map(|beyond| Quantity::Affordable { beyond }),
            1 => beyond().prop_map(|beyond| Quantity::Left { beyond }),
            1 => Just(Quantity::Pieces(MAX_QUANTITY)),
        ]
    };
    let lines = vec((nearly_anything(), quantity()), 1..4);
    let coupon = prop_oneof![
        4 => Just(CouponOf::None),
        5 => any::<Nth>().prop_map(CouponOf::Own),
        1 => any::<Nth>().prop_map(CouponOf::Any),
        1 => Just(CouponOf::Unknown),
    ];
    let expected =
        prop_oneof![2 => Just(Expected::None), 1 => beyond().prop_map(|beyond| Expected::Total { beyond })];
    let user = prop_oneof![20 => somebody(), 1 => anybody()];
    (user, lines, coupon, expected).prop_map(|(user, lines, coupon, expected)| Ask::Place {
        user,
        lines,
        coupon,
        expected,
    })
}

fn put_product() -> impl Strategy<Value = Ask> {
    let name = select(vec!["Mug", "", "따뜻한 아메리카노 (연하게, 얼음 없이, 큰 잔)", "a\u{0}b\"'\\\n"]);
    // 101 and 1,999 are no multiples of the price step, as the API demands; but only so does rounding show
    let price = select(vec![100, 100, 500, 500, 500, 1_000, 1_900, 1_900, 12_300, 101, 1_999, MAX_PRICE]);
    let status = prop_oneof![8 => Just(ProductStatus::OnSale), 1 => Just(ProductStatus::Suspended)];
    let stock = prop_oneof![
        3 => Just(None),
        3 => (0..12u64).prop_map(Some),
        4 => Just(Some(2_000)),
        1 => Just(Some(MAX_STOCK)),
    ];
    (something(), name, price, status, stock).prop_map(|(product, name, price, status, stock)| {
        Ask::PutProduct { product, name, price, status, stock }
    })
}

fn terms() -> impl Strategy<Value = Terms> {
    let max = || option::of(select(vec![1, 800, MAX_DISCOUNT_AMOUNT]));
    let discount = prop_oneof![
        select(vec![1, 333, 500, 1_000, MAX_DISCOUNT_AMOUNT]).prop_map(|value| ("amount", value, None)),
        (select(vec![1, 7, 33, 50, 99, 100]), max()).prop_map(|(value, max)| ("percent", value, max)),
    ];
    let from_ms = prop_oneof![
        6 => Just(-HOUR_MS),
        1 => select(vec![0, 1, SECOND_MS, HOUR_MS]),
    ];
    let length_ms = prop_oneof![
        4 => Just(10 * YEAR_MS),
        2 => Just(2 * HOUR_MS),
        1 => select(vec![1, SECOND_MS, HOUR_MS, 30 * DAY_MS]),
    ];
    let min_subtotal = select(vec![0, 0, 0, 0, 500, 1_000, 1_000, 1_900, MAX_ORDER_AMOUNT]);
    let max_issued = select(vec![1, 2, 3, 4, 6, 6, MAX_TEMPLATE_LIMIT]);
    (select(vec!["Spring", "봄맞이 선착순"]), discount, min_subtotal, max_issued, from_ms, length_ms)
        .prop_map(|(name, discount, min_subtotal, max_issued, from_ms, length_ms)| Terms {
            name,
            discount,
            min_subtotal,
            max_issued,
            from_ms,
            length_ms,
        })
}

fn clock() -> impl Strategy<Value = Clock> {
    prop_oneof![
        3 => (1..2_000i64).prop_map(|ms| Clock::By { ms }),
        3 => select(vec![HOUR_MS, 6 * HOUR_MS, 25 * HOUR_MS]).prop_map(|ms| Clock::By { ms }),
        1 => Just(Clock::By { ms: YEAR_MS }),
        4 => (0..2 * HOUR_MS).prop_map(|ms| Clock::Idle { ms }),
        2 => beyond_ms().prop_map(|beyond_ms| Clock::ToMidnight { beyond_ms }),
        4 => (something(), any::<bool>(), beyond_ms())
            .prop_map(|(template, end, beyond_ms)| Clock::ToWindow { template, end, beyond_ms }),
        2 => (any::<Nth>(), beyond_ms()).prop_map(|(coupon, beyond_ms)| Clock::ToCouponsEnd { coupon, beyond_ms }),
        3 => (any::<Nth>(), beyond_ms()).prop_map(|(key, beyond_ms)| Clock::ToKeysEnd { key, beyond_ms }),
    ]
}

fn read() -> impl Strategy<Value = Read> {
    prop_oneof![
        anybody().prop_map(Read::Balance),
        vec(anything(), 0..6).prop_map(Read::Products),
        (option::of(anything()), 1..6usize).prop_map(|(after, limit)| Read::ListProducts { after, limit }),
        vec(anything(), 0..6).prop_map(Read::Templates),
        (option::of(anything()), 1..6usize).prop_map(|(after, limit)| Read::ListTemplates { after, limit }),
        anybody().prop_map(Read::Held),
    ]
}
