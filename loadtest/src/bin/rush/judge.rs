//! Judges the shop after the run: its own numbers compared with what users read in their answers.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::time::Duration;

use rushgate_loadtest::Outcome;
use rushgate_loadtest::shop::Shop;

use crate::card_sale::{self, Observed};
use crate::crowd::{Crowd, Told, number};
use crate::verdict::Verdict;

/// Time limit until PostgreSQL and RabbitMQ have everything that was decided.
const SETTLE_LIMIT: Duration = Duration::from_secs(120);

/// Compares the shop with what its users know.
pub async fn of(
    crowd: &Crowd,
    own: Option<&Shop>,
    rushgate: &Path,
    observed: &Observed<'_>,
) -> Outcome<Verdict> {
    let mut verdict = Verdict::default();
    if let Some(shop) = own {
        followers(&mut verdict, shop).await;
    }
    let told = crowd.told();
    if crowd.coupons > 0 {
        let template = crowd.api.get(&format!("/v1/coupon-templates/{}", crowd.template())).await?;
        coupons(&mut verdict, crowd, &told, number(&template, "issued"));
    }
    if crowd.pieces > 0 {
        let product = crowd.api.get(&format!("/v1/products/{}", crowd.scarce())).await?;
        pieces(&mut verdict, crowd, &told, number(&product, "stock"));
    }
    if crowd.card_pieces > 0 {
        card_sale::judge(&mut verdict, crowd, &told.card, observed).await?;
    }
    if told.wallets > 0 {
        wallets(&mut verdict, &told);
    }
    if told.unknown > 0 {
        verdict.tell(format!(
            "The outcome of {} changes is unknown to their users; this does not count against the shop.",
            told.unknown
        ));
    }
    match own {
        Some(shop) => {
            messages(&mut verdict, shop).await?;
            let audit = shop.audit(rushgate);
            let differences = audit.as_ref().err().map(ToString::to_string).unwrap_or_default();
            verdict.claim(
                audit.is_ok(),
                "The audit is clean: gate, PostgreSQL and outbox agree.",
                differences,
            );
        }
        None => verdict.tell("No audit was run: run `rushgate audit` on that host."),
    }
    Ok(verdict)
}

/// Exactly the limit was issued, no user got two, and each serial was issued once.
fn coupons(verdict: &mut Verdict, crowd: &Crowd, told: &Told, issued: u64) {
    let (limit, answers) = (crowd.coupons, told.coupons.len() as u64);
    verdict.claim(
        issued == limit,
        format!("Exactly {limit} coupons were issued: the limit."),
        format!(
            "{issued} coupons were issued; the limit is {limit} (if fewer: use more users, or a longer run)."
        ),
    );
    let users: HashSet<u64> = told.coupons.iter().map(|(user, _)| *user).collect();
    let serials: HashSet<u64> = told.coupons.iter().map(|(_, serial)| *serial).collect();
    let once = users.len() as u64 == answers
        && serials.len() as u64 == answers
        && serials.iter().all(|serial| (1..=limit).contains(serial));
    verdict.claim(
        once,
        format!("{answers} answers issued a coupon: no user got two, and each has its own serial."),
        format!(
            "{answers} answers issued a coupon, but to {} users and with {} serials.",
            users.len(),
            serials.len()
        ),
    );
    explain(verdict, "coupons", issued, answers, told.unknown);
}

fn pieces(verdict: &mut Verdict, crowd: &Crowd, told: &Told, left: u64) {
    let (stock, sold) = (crowd.pieces, told.pieces);
    verdict.claim(
        sold <= stock,
        format!("{sold} of {stock} pieces were sold: nothing was oversold."),
        format!("{sold} pieces were sold, but the stock was {stock}."),
    );
    verdict.claim(
        left == 0,
        "The flash sale is sold out.",
        format!("{left} pieces of the flash sale are left (use more users, or a longer run)."),
    );
    explain(verdict, "pieces", stock.saturating_sub(left), sold, told.unknown);
}

/// What the shop gave away equals what users know of, except for requests without a clear answer.
fn explain(verdict: &mut Verdict, what: &str, left: u64, known: u64, unknown: u64) {
    if left != known {
        verdict.claim(
            known < left && left - known <= unknown,
            format!(
                "The shop gave out {left} {what}; for {} of them, users never got an answer.",
                left - known
            ),
            format!(
                "The shop gave out {left} {what}; users know of {known}, and {unknown} changes got no answer."
            ),
        );
    }
}

fn wallets(verdict: &mut Verdict, told: &Told) {
    let Told { wallets, wrong_wallets, orders, cancelled, .. } = told;
    let text = format!("{orders} orders and {cancelled} cancellations, {wallets} reads of wallets");
    let first = wrong_wallets.first().map_or("", String::as_str);
    verdict.claim(
        wrong_wallets.is_empty(),
        format!("{text}: every balance was as its user expected."),
        format!("{text}: {} balances were wrong, the first: {first}.", wrong_wallets.len()),
    );
}

/// PostgreSQL and RabbitMQ catch up. That they do is said only by what follows from it.
async fn followers(verdict: &mut Verdict, shop: &Shop) {
    if let Err(e) = shop.settle(SETTLE_LIMIT).await {
        let late = format!("PostgreSQL and RabbitMQ do not have everything: {e}");
        verdict.claim(false, "", late);
    }
}

/// Kinds of messages, and how many of each the orders in PostgreSQL call for. An order that was
/// pending is completed when its payment is confirmed.
const EVENTS: [(&str, &str); 3] = [
    (
        "completed",
        "SELECT count(*) FROM orders WHERE NOT external OR paid_at IS NOT NULL OR hold_expires_at IS NULL",
    ),
    ("cancelled", "SELECT count(*) FROM orders WHERE status = 'cancelled'"),
    ("expired", "SELECT count(*) FROM orders WHERE status = 'expired'"),
];

/// The queue has a message for each order that was completed, was cancelled or expired.
async fn messages(verdict: &mut Verdict, shop: &Shop) -> Outcome<()> {
    let found = shop.take_messages().await?;
    let (mut wanted, mut delivered) = (vec![], vec![]);
    for (kind, sql) in EVENTS {
        let count: i64 = sqlx::query_scalar(sql).fetch_one(&shop.pool).await?;
        wanted.push((kind, u64::try_from(count)?));
        delivered.push((kind, distinct(&found, kind)));
    }
    let listed = |counts: &[(&str, u64)]| {
        let texts: Vec<String> = counts.iter().map(|(kind, n)| format!("{n} {kind}")).collect();
        texts.join(", ")
    };
    verdict.claim(
        delivered == wanted,
        format!("RabbitMQ has a message for each order: {}.", listed(&wanted)),
        format!(
            "RabbitMQ has messages for {} orders, but PostgreSQL has {}.",
            listed(&delivered),
            listed(&wanted)
        ),
    );
    Ok(())
}

/// Number of different messages of a kind.
fn distinct(found: &BTreeMap<String, HashSet<String>>, kind: &str) -> u64 {
    found.get(&format!("order.{kind}")).map_or(0, |ids| ids.len() as u64)
}
