//! Generates random plans. The weights make requests collide and hit limits often.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::Union;
use rushgate::domain::limits::*;
use rushgate::domain::{CouponStatus, ProductStatus};

use super::kind::{KINDS, Kind};
use super::plan::*;

const SECOND_MS: i64 = 1_000;
const HOUR_MS: i64 = 3_600 * SECOND_MS;
const DAY_MS: i64 = 24 * HOUR_MS;
const YEAR_MS: i64 = 366 * DAY_MS;

fn anybody() -> impl Strategy<Value = usize> {
    0..USERS.len()
}
fn somebody() -> impl Strategy<Value = usize> {
    0..USERS.len() - 1
}
/// One of the few products or templates.
fn something() -> impl Strategy<Value = usize> {
    0..TEMPLATES.len() - 1
}
/// One of them, or the template that never exists.
fn any_template() -> impl Strategy<Value = usize> {
    0..TEMPLATES.len()
}
/// One of them, or the product that never exists.
fn any_product() -> impl Strategy<Value = usize> {
    prop_oneof![4 => something(), 1 => Just(PRODUCTS.len() - 1)]
}
/// Rarely one that never exists. Otherwise nearly every order with many lines would contain one.
fn nearly_any_template() -> impl Strategy<Value = usize> {
    prop_oneof![16 => something(), 1 => any_template()]
}
fn nearly_any_product() -> impl Strategy<Value = usize> {
    prop_oneof![16 => something(), 1 => any_product()]
}

/// Exactly the limit, one more, or several more.
fn beyond() -> impl Strategy<Value = u64> {
    prop_oneof![3 => Just(0u64), 2 => Just(1u64), 1 => 2..50u64]
}
fn beyond_ms() -> impl Strategy<Value = i64> {
    prop_oneof![3 => Just(0i64), 2 => Just(-1i64), 1 => Just(1i64), 1 => 2..5_000i64]
}

pub fn case() -> impl Strategy<Value = Case> {
    let ahead = (0..DAY_MS).prop_map(|after_midnight_ms| Start::Ahead { after_midnight_ms });
    let behind = (0..2 * HOUR_MS).prop_map(|by_ms| Start::Behind { by_ms });
    prop_oneof![4 => case_from(ahead, moment().boxed()), 1 => case_from(behind, idle_moment().boxed())]
}

fn case_from(
    start: impl Strategy<Value = Start>,
    moment: BoxedStrategy<Vec<PlannedStep>>,
) -> impl Strategy<Value = Case> {
    // The shop at the beginning. Without products, templates and wallets everything else would be
    // refused. One of each is enough, so that shrinking can remove the rest.
    let opening = (
        batch_of(Kind::PutProduct, Just(Claim::Last), 1..24),
        batch_of(Kind::PutTemplate, Just(Claim::Last), 1..16),
        batch_of(Kind::ChargeWallet, Just(Claim::Last), 1..32),
        batch_of(Kind::IssueCoupon, Just(Claim::Last), 1..24),
    );
    // Shrinking goes in this order. The long list comes first, so that later attempts run short
    // cases.
    (vec(steps(moment), 1..40), opening, start, 2..9u64).prop_map(
        |(rest, opening, start, epoch)| {
            let (products, templates, wallets, coupons) = opening;
            let opening =
                [products, templates, wallets, coupons].into_iter().map(PlannedStep::Batch);
            Case { start, epoch, steps: opening.chain(rest.into_iter().flatten()).collect() }
        },
    )
}

/// Usually one step.
fn steps(moment: BoxedStrategy<Vec<PlannedStep>>) -> impl Strategy<Value = Vec<PlannedStep>> {
    let kinds = [
        (Kind::PlaceOrder, 9),
        (Kind::IssueCoupon, 4),
        (Kind::ChargeWallet, 4),
        (Kind::CancelOrder, 4),
        (Kind::ConfirmOrder, 2),
        (Kind::ExpireOrder, 3),
        (Kind::PutProduct, 1),
        (Kind::AdjustStock, 2),
        (Kind::PutTemplate, 2),
    ];
    let batches =
        kinds.map(|(kind, weight)| (weight, one(batch(kind).prop_map(PlannedStep::Batch))));
    let others = [(7, moment), (2, one(vec(read(), 1..6).prop_map(PlannedStep::Read)))];
    Union::new_weighted(batches.into_iter().chain(others).collect())
}

fn one(step: impl Strategy<Value = PlannedStep> + 'static) -> BoxedStrategy<Vec<PlannedStep>> {
    step.prop_map(|step| vec![step]).boxed()
}

/// A moment on which decisions depend, followed by such decisions. By chance they would seldom
/// meet.
fn moment() -> impl Strategy<Value = Vec<PlannedStep>> {
    let keyed: Vec<Kind> = KINDS.into_iter().filter(|kind| kind.takes_keys()).collect();
    let coupons_end = |used| {
        (any::<Nth>(), beyond_ms()).prop_map(move |(coupon, beyond_ms)| Clock::ToCouponsEnd {
            used,
            coupon,
            beyond_ms,
        })
    };
    let by = prop_oneof![
        3 => 1..2_000i64,
        3 => select(vec![HOUR_MS, 6 * HOUR_MS, 25 * HOUR_MS]),
        1 => Just(YEAR_MS),
    ];
    let window = (any::<Nth>(), beyond_ms())
        .prop_map(|(border, beyond_ms)| Clock::ToWindow { border, beyond_ms });
    let keys_end = (any::<Nth>(), beyond_ms())
        .prop_map(|(key, beyond_ms)| Clock::ToKeysEnd { key, beyond_ms });
    let hold_end = || {
        (0..4u8, beyond_ms()).prop_map(|(order, beyond_ms)| Clock::ToHoldEnd { order, beyond_ms })
    };
    let sale = (any::<Nth>(), beyond_ms())
        .prop_map(|(border, beyond_ms)| Clock::ToSale { border, beyond_ms });
    let midnight = beyond_ms().prop_map(|beyond_ms| Clock::ToMidnight { beyond_ms });
    prop_oneof![
        5 => then(by.prop_map(|ms| Clock::By { ms }), &KINDS),
        5 => then(window, &[Kind::IssueCoupon]),
        3 => then(coupons_end(true), &[Kind::CancelOrder]),
        2 => then(coupons_end(false), &[Kind::PlaceOrder]),
        2 => (coupons_end(false), vec(held(), 1..6))
            .prop_map(|(clock, reads)| vec![PlannedStep::Clock(clock), PlannedStep::Read(reads)]),
        3 => then(keys_end, &keyed),
        2 => then(midnight, &keyed),
        5 => then(hold_end(), &[Kind::ExpireOrder]),
        3 => then(hold_end(), &[Kind::ConfirmOrder, Kind::CancelOrder]),
        4 => then(sale, &[Kind::PlaceOrder]),
    ]
}

fn idle_moment() -> impl Strategy<Value = Vec<PlannedStep>> {
    // Their refusals may depend on a moment that the server's clock has passed.
    let kinds = [Kind::IssueCoupon, Kind::PlaceOrder, Kind::PlaceOrder, Kind::ConfirmOrder];
    then((0..2 * HOUR_MS).prop_map(|ms| Clock::Idle { ms }), &kinds)
}

fn then(
    clock: impl Strategy<Value = Clock> + 'static,
    kinds: &[Kind],
) -> BoxedStrategy<Vec<PlannedStep>> {
    // No `prop_flat_map`: it would stop the shrinking of the whole case.
    let batch = Union::new(kinds.iter().map(|kind| batch(*kind).boxed()));
    (clock, batch)
        .prop_map(|(clock, batch)| vec![PlannedStep::Clock(clock), PlannedStep::Batch(batch)])
        .boxed()
}

fn batch(kind: Kind) -> impl Strategy<Value = Batch> {
    prop_oneof![
        3 => batch_of(kind, claim(), 1..5),
        3 => batch_of(kind, claim(), 1..16),
        4 => batch_of(kind, claim(), 1..41),
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
        3 => select(vec![Claim::OtherEpoch, Claim::OtherDay, Claim::Later, Claim::Backlog, Claim::Closed]),
        1 => Just(Claim::Other(0)),
        1 => any::<Nth>().prop_map(Claim::Other),
    ]
}

fn job(kind: Kind) -> impl Strategy<Value = Job> {
    let deadline = prop_oneof![
        45 => Just(Deadline::Ahead),
        2 => (1..10_000i64).prop_map(|ms| Deadline::Past { ms }),
        1 => Just(Deadline::Soon),
        2 => (0..2i64).prop_map(|ms| Deadline::In { ms }),
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
        Kind::IssueCoupon => (nearly_any_template(), anybody())
            .prop_map(|(template, user)| Ask::Issue { template, user })
            .boxed(),
        Kind::ChargeWallet => {
            let won =
                [0, 1, 99, 100, 500, 2_000, 2_000, 10_000, 10_000, 100_000, 999_999, MAX_BALANCE];
            let amount = prop_oneof![
                5 => select(won.to_vec()).prop_map(Amount::Won),
                1 => beyond().prop_map(|beyond| Amount::ToLimit { beyond }),
                4 => (something(), 0..2u64).prop_map(|(product, less)| Amount::ToPrice { product, less }),
            ];
            (somebody(), amount).prop_map(|(user, amount)| Ask::Charge { user, amount }).boxed()
        }
        Kind::PlaceOrder => place().boxed(),
        Kind::CancelOrder => {
            let order = prop_oneof![
                12 => (0..8u8).prop_map(OrderOf::Live),
                6 => (0..8u8).prop_map(OrderOf::WithCoupon),
                3 => (0..8u8).prop_map(OrderOf::Pending),
                8 => (0..16u8).prop_map(OrderOf::Placed),
                1 => anybody().prop_map(|user| OrderOf::Invented { user }),
            ];
            let epoch = prop_oneof![16 => Just(ReadIn::This), 1 => Just(ReadIn::Earlier), 1 => Just(ReadIn::Later)];
            let as_pending = prop_oneof![6 => Just(false), 1 => Just(true)];
            (order, epoch, as_pending)
                .prop_map(|(order, epoch, as_pending)| Ask::Cancel { order, epoch, as_pending })
                .boxed()
        }
        Kind::ConfirmOrder => {
            let order = prop_oneof![
                8 => (0..8u8).prop_map(OrderOf::Pending),
                4 => (0..4u8).prop_map(OrderOf::Due),
                3 => (0..16u8).prop_map(OrderOf::Placed),
                1 => anybody().prop_map(|user| OrderOf::Invented { user }),
            ];
            (order, select(vec!["card-1", "card-2", " ~"]))
                .prop_map(|(order, reference)| Ask::Confirm { order, reference })
                .boxed()
        }
        Kind::ExpireOrder => prop_oneof![
            12 => (0..6u8).prop_map(OrderOf::Due),
            3 => (0..8u8).prop_map(OrderOf::Pending),
            3 => (0..16u8).prop_map(OrderOf::Placed),
            1 => anybody().prop_map(|user| OrderOf::Invented { user }),
        ]
        .prop_map(|order| Ask::Expire { order })
        .boxed(),
        Kind::PutProduct => put_product().boxed(),
        Kind::AdjustStock => {
            let delta = prop_oneof![
                4 => (-4..12i64).prop_map(Delta::Pieces),
                1 => beyond().prop_map(|beyond| Delta::Left { beyond }),
                1 => beyond().prop_map(|beyond| Delta::ToHighest { beyond }),
            ];
            let reason = option::of(select(vec!["", "counted", "반품"]));
            (any_product(), delta, reason, select(vec![MAX_STOCK, 40]))
                .prop_map(|(product, delta, reason, highest)| Ask::Adjust {
                    product,
                    delta,
                    reason,
                    highest,
                })
                .boxed()
        }
        Kind::PutTemplate => (something(), terms())
            .prop_map(|(template, terms)| Ask::PutTemplate { template, terms })
            .boxed(),
    }
}

fn place() -> impl Strategy<Value = Ask> {
    let quantity = || {
        prop_oneof![
            25 => (1..4u64).prop_map(Quantity::Pieces),
            6 => beyond().prop_map(|beyond| Quantity::Affordable { beyond }),
            1 => beyond().prop_map(|beyond| Quantity::Left { beyond }),
            1 => Just(Quantity::Pieces(MAX_QUANTITY)),
        ]
    };
    let lines = vec((nearly_any_product(), quantity()), 1..4);
    let coupon = prop_oneof![
        4 => Just(CouponOf::None),
        6 => any::<Nth>().prop_map(CouponOf::Unused),
        2 => any::<Nth>().prop_map(CouponOf::Own),
        1 => any::<Nth>().prop_map(CouponOf::Any),
        1 => Just(CouponOf::Unknown),
    ];
    let expected = prop_oneof![2 => Just(Expected::None), 1 => beyond().prop_map(|beyond| Expected::Total { beyond })];
    let user = prop_oneof![20 => somebody(), 1 => anybody()];
    let reference = prop_oneof![9 => Just(None), 1 => select(vec!["2026-1", "#"]).prop_map(Some)];
    (user, lines, coupon, expected, payment(), reference).prop_map(
        |(user, lines, coupon, expected, payment, reference)| Ask::CellState {
            user,
            lines,
            coupon,
            expected,
            payment,
            reference,
        },
    )
}

fn payment() -> impl Strategy<Value = Payment> {
    let wallet = prop_oneof![
        4 => Just(WalletPart::Won(0)),
        2 => select(vec![1, 100, 500]).prop_map(WalletPart::Won),
        2 => (0..2u64).prop_map(|less| WalletPart::Total { less }),
        2 => (0..2u64).prop_map(|beyond| WalletPart::Balance { beyond }),
        1 => (1..3u64).prop_map(|beyond| WalletPart::AboveTotal { beyond }),
    ];
    let hold_ms = prop_oneof![
        // Shorter than the API allows, so that it ends while a case runs.
        1 => Just(1),
        6 => select(vec![60_000, 60_001, 600_000, 3_600_000]),
    ];
    let outside = (wallet, hold_ms, select(vec![1, 2, 2, 3, 5])).prop_map(
        |(wallet, hold_ms, pending_limit)| Payment::Outside { wallet, hold_ms, pending_limit },
    );
    prop_oneof![3 => Just(Payment::Wallet), 2 => outside]
}

fn rules() -> impl Strategy<Value = Rules> {
    let from_ms = prop_oneof![
        5 => Just(None),
        1 => Just(Some(-HOUR_MS)),
        2 => select(vec![0, 1, SECOND_MS, HOUR_MS]).prop_map(Some),
    ];
    let until_ms = prop_oneof![
        5 => Just(None),
        2 => Just(Some(10 * YEAR_MS)),
        1 => select(vec![1, SECOND_MS, HOUR_MS, 30 * DAY_MS]).prop_map(Some),
    ];
    let per_user_limit = prop_oneof![1 => Just(None), 1 => (1..9u64).prop_map(Some)];
    let attributes = option::of(select(vec!["{}", r#"{"image_url":"https://a.example/컵.png"}"#]));
    let some = (from_ms, until_ms, per_user_limit, attributes).prop_map(
        |(from_ms, until_ms, per_user_limit, attributes)| Rules {
            from_ms,
            until_ms,
            per_user_limit,
            attributes,
        },
    );
    prop_oneof![2 => Just(Rules::default()), 1 => some]
}

fn put_product() -> impl Strategy<Value = Ask> {
    let name =
        select(vec!["Mug", "", "따뜻한 아메리카노 (연하게, 얼음 없이, 큰 잔)", "a\u{0}b\"'\\\n"]);
    // 101 and 1,999 are not multiples of the price step that the API requires, but only such prices
    // show rounding.
    let price =
        select(vec![100, 100, 500, 500, 500, 1_000, 1_900, 1_900, 12_300, 101, 1_999, MAX_PRICE]);
    let status =
        prop_oneof![16 => Just(ProductStatus::OnSale), 1 => Just(ProductStatus::Suspended)];
    let stock = prop_oneof![
        1 => Just(Stock::None),
        3 => (0..12u64).prop_map(Stock::IfNew),
        14 => Just(Stock::IfNew(2_000)),
        1 => Just(Stock::IfNew(MAX_STOCK)),
        2 => (0..12u64).prop_map(Stock::Given),
    ];
    (something(), name, price, status, stock, rules()).prop_map(
        |(product, name, price, status, stock, rules)| Ask::PutProduct {
            product,
            name,
            price,
            status,
            stock,
            rules,
        },
    )
}

fn terms() -> impl Strategy<Value = Terms> {
    let max = || option::of(select(vec![1, 800, MAX_DISCOUNT_AMOUNT]));
    let discount = prop_oneof![
        select(vec![1, 333, 500, 1_000, MAX_DISCOUNT_AMOUNT])
            .prop_map(|value| ("amount", value, None)),
        (select(vec![1, 7, 33, 50, 99, 100]), max())
            .prop_map(|(value, max)| ("percent", value, max)),
    ];
    let from_ms = prop_oneof![
        6 => Just(-HOUR_MS),
        1 => select(vec![0, 1, SECOND_MS, HOUR_MS]),
    ];
    let length_ms = prop_oneof![
        4 => Just(10 * YEAR_MS),
        2 => Just(2 * HOUR_MS),
        2 => select(vec![1, SECOND_MS, HOUR_MS, 30 * DAY_MS]),
    ];
    let min_subtotal = select(vec![0, 0, 0, 0, 500, 1_000, 1_000, 1_900, MAX_ORDER_AMOUNT]);
    let max_issued = select(vec![1, 2, 3, 4, 6, 6, MAX_TEMPLATE_LIMIT]);
    (
        select(vec!["Spring", "봄맞이 선착순"]),
        discount,
        min_subtotal,
        max_issued,
        from_ms,
        length_ms,
    )
        .prop_map(|(name, discount, min_subtotal, max_issued, from_ms, length_ms)| Terms {
            name,
            discount,
            min_subtotal,
            max_issued,
            from_ms,
            length_ms,
        })
}

fn read() -> impl Strategy<Value = Read> {
    prop_oneof![
        1 => anybody().prop_map(Read::Balance),
        1 => vec(any_product(), 0..6).prop_map(Read::Products),
        1 => (vec(any_product(), 0..6), vec(any_template(), 0..6))
            .prop_map(|(products, templates)| Read::Watched(products, templates)),
        1 => (option::of(any_product()), 1..6usize)
            .prop_map(|(after, limit)| Read::ListProducts { after, limit }),
        1 => vec(any_template(), 0..6).prop_map(Read::Templates),
        1 => (option::of(any_template()), 1..6usize)
            .prop_map(|(after, limit)| Read::ListTemplates { after, limit }),
        4 => held(),
        1 => (somebody(), coupon()).prop_map(|(user, coupon)| Read::Coupon { user, coupon }),
        1 => (any_template(), option::of(any::<Nth>()))
            .prop_map(|(template, version)| Read::Terms { template, version }),
        1 => anybody().prop_map(Read::Bought),
        1 => anybody().prop_map(Read::Pending),
        1 => (1..6usize).prop_map(|most| Read::Due { most }),
    ]
}

fn coupon() -> impl Strategy<Value = AfterCoupon> {
    prop_oneof![
        8 => any::<Nth>().prop_map(AfterCoupon::Own),
        1 => Just(AfterCoupon::Unknown),
    ]
}

fn held() -> impl Strategy<Value = Read> {
    let status = option::of(select(vec![
        CouponStatus::Available,
        CouponStatus::Used,
        CouponStatus::Expired,
    ]));
    (somebody(), status, 1..5usize, option::of(coupon()))
        .prop_map(|(user, status, limit, after)| Read::Held { user, status, limit, after })
}

/// Calls with the maximum number of requests, and orders with the maximum number of lines.
pub fn large_case() -> impl Strategy<Value = Case> {
    let shelf = (SHELF_FROM..SHELF_FROM + SHELF).map(|product| Job {
        deadline: Deadline::Ahead,
        key: Key::None,
        ask: Ask::PutProduct {
            product,
            name: "따뜻한 아메리카노 (연하게, 얼음 없이, 큰 잔)",
            price: 100,
            status: ProductStatus::OnSale,
            stock: Stock::IfNew(MAX_STOCK),
            // every fourth
            rules: Rules {
                per_user_limit: (product % 4 == 0).then_some(1_000),
                ..Rules::default()
            },
        },
    });
    let rich = (0..USERS.len() - 1).map(|user| Job {
        deadline: Deadline::Ahead,
        key: Key::None,
        ask: Ask::Charge { user, amount: Amount::ToLimit { beyond: 0 } },
    });
    let step = |kind, jobs| PlannedStep::Batch(Batch { kind, claim: Claim::Last, jobs });
    let opening =
        [step(Kind::PutProduct, shelf.collect()), step(Kind::ChargeWallet, rich.collect())];
    let large = |kind| vec(job(kind), 200..257).prop_map(move |jobs| step(kind, jobs));
    let orders = vec(large_order(), 256).prop_map(move |jobs| step(Kind::PlaceOrder, jobs));
    let start = (0..DAY_MS).prop_map(|after_midnight_ms| Start::Ahead { after_midnight_ms });
    let rest = (
        large(Kind::PutProduct),
        large(Kind::PutTemplate),
        large(Kind::IssueCoupon),
        large(Kind::ChargeWallet),
    );
    let last = (
        large(Kind::PlaceOrder),
        large(Kind::CancelOrder),
        large(Kind::AdjustStock),
        large(Kind::ConfirmOrder),
        large(Kind::ExpireOrder),
    );
    (start, orders, rest, last, vec(held(), 200..257)).prop_map(
        move |(start, orders, rest, last, reads)| {
            let hour = PlannedStep::Clock(Clock::By { ms: HOUR_MS });
            let steps =
                [rest.0, rest.1, rest.2, rest.3, last.0, last.3, last.1, last.2, hour, last.4];
            let steps = opening
                .clone()
                .into_iter()
                .chain([orders])
                .chain(steps)
                .chain([PlannedStep::Read(reads)]);
            Case { start, epoch: 2, steps: steps.collect() }
        },
    )
}

fn large_order() -> impl Strategy<Value = Job> {
    let quantity = prop_oneof![30 => Just(Quantity::Pieces(1)), 1 => beyond().prop_map(|beyond| Quantity::Affordable { beyond })];
    let lines = (
        0..SHELF - MAX_ORDER_PRODUCTS,
        30..MAX_ORDER_PRODUCTS + 1,
        vec(quantity, MAX_ORDER_PRODUCTS),
    );
    let lines = lines.prop_map(|(from, count, quantities)| {
        quantities
            .into_iter()
            .take(count)
            .enumerate()
            .map(|(n, of)| (SHELF_FROM + from + n, of))
            .collect()
    });
    let ask = (somebody(), lines, any::<Nth>()).prop_map(|(user, lines, n)| {
        let coupon = if n % 4 == 0 { CouponOf::Unused(n) } else { CouponOf::None };
        let payment = match n % 8 {
            1 => Payment::Outside {
                wallet: WalletPart::Won(100),
                hold_ms: 60_000,
                pending_limit: 50,
            },
            _ => Payment::Wallet,
        };
        Ask::CellState { user, lines, coupon, expected: Expected::None, payment, reference: None }
    });
    (key(Kind::PlaceOrder), ask).prop_map(|(key, ask)| Job { deadline: Deadline::Ahead, key, ask })
}
