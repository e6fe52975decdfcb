//! The verdict on the shop after the run: its own numbers compared with what users read in their
//! answers.

use std::collections::HashSet;
use std::fmt;
use std::path::Path;

use rushgate_loadtest::Outcome;
use rushgate_loadtest::shop::Shop;

use crate::crowd::{Crowd, Told, number};

/// Statements, each with whether it is good.
#[derive(Default)]
pub struct Verdict {
    sentences: Vec<(bool, String)>,
}

impl Verdict {
    /// Adds a check: `so` if it is good, else `otherwise`.
    fn claim(&mut self, good: bool, so: impl Into<String>, otherwise: impl Into<String>) {
        self.sentences.push((good, if good { so.into() } else { otherwise.into() }));
    }

    /// Adds information that does not affect the verdict.
    pub fn tell(&mut self, sentence: impl Into<String>) {
        self.sentences.push((true, sentence.into()));
    }

    /// The statements, each with whether it is good.
    pub fn sentences(&self) -> &[(bool, String)] {
        &self.sentences
    }

    pub fn is_good(&self) -> bool {
        self.sentences.iter().all(|(good, _)| *good)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}",
            if self.is_good() {
                "The shop kept its promises:"
            } else {
                "The shop did NOT keep its promises:"
            }
        )?;
        for (good, sentence) in &self.sentences {
            writeln!(f, "  {} {sentence}", if *good { "✓" } else { "✗" })?;
        }
        Ok(())
    }
}

pub async fn of(crowd: &Crowd, own: Option<&Shop>, rushgate: &Path) -> Outcome<Verdict> {
    let mut verdict = Verdict::default();
    let told = crowd.told();
    if crowd.coupons > 0 {
        let template = crowd.api.get(&format!("/v1/coupon-templates/{}", crowd.template())).await?;
        coupons(&mut verdict, crowd, &told, number(&template, "issued"));
    }
    if crowd.pieces > 0 {
        let product = crowd.api.get(&format!("/v1/products/{}", crowd.scarce())).await?;
        pieces(&mut verdict, crowd, &told, number(&product, "stock"));
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

/// The queue has a message for each order and each cancellation.
async fn messages(verdict: &mut Verdict, shop: &Shop) -> Outcome<()> {
    let events: i64 = sqlx::query_scalar(
        "SELECT count(*) + count(*) FILTER (WHERE status = 'cancelled') FROM orders",
    )
    .fetch_one(&shop.pool)
    .await?;
    let delivered = i64::from(shop.empty_queue().await?);
    verdict.claim(
        delivered >= events,
        format!("RabbitMQ has a message for each of {events} orders and cancellations."),
        format!("RabbitMQ has only {delivered} messages for {events} orders and cancellations."),
    );
    Ok(())
}
