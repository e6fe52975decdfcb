//! What became of the shop, in plain words: the shop's own numbers against what its users were told.

use std::collections::HashSet;
use std::fmt;
use std::path::Path;

use rushgate_loadtest::Outcome;
use rushgate_loadtest::shop::Shop;

use crate::crowd::{Crowd, Told, number};

/// Sentences, each with whether it is good.
#[derive(Default)]
pub struct Verdict {
    sentences: Vec<(bool, String)>,
}

impl Verdict {
    /// What is so when it is good, or else what is so instead.
    fn claim(&mut self, good: bool, so: impl Into<String>, otherwise: impl Into<String>) {
        self.sentences.push((good, if good { so.into() } else { otherwise.into() }));
    }

    /// What is neither good nor bad.
    pub fn tell(&mut self, sentence: impl Into<String>) {
        self.sentences.push((true, sentence.into()));
    }

    /// Each with whether it is good.
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
            if self.is_good() { "The shop got it right:" } else { "The shop did NOT get it right:" }
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
            "{} changes have an outcome that their users never learned; they are not held against the shop.",
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
        None => verdict.tell("No audit was made here: run `rushgate audit` beside that host."),
    }
    Ok(verdict)
}

/// Exactly the limit, nobody twice, each serial once.
fn coupons(verdict: &mut Verdict, crowd: &Crowd, told: &Told, issued: u64) {
    let (limit, answers) = (crowd.coupons, told.coupons.len() as u64);
    verdict.claim(
        issued == limit,
        format!("Exactly {limit} coupons were issued, as many as there were."),
        format!(
            "{issued} coupons were issued, and there were {limit} (fewer: give it more users, or more time)."
        ),
    );
    let users: HashSet<u64> = told.coupons.iter().map(|(user, _)| *user).collect();
    let serials: HashSet<u64> = told.coupons.iter().map(|(_, serial)| *serial).collect();
    let once = users.len() as u64 == answers
        && serials.len() as u64 == answers
        && serials.iter().all(|serial| (1..=limit).contains(serial));
    verdict.claim(
        once,
        format!("{answers} users were told that they have one: nobody twice, each with a serial of its own."),
        format!("{answers} answers gave coupons to {} users, with {} serials.", users.len(), serials.len()),
    );
    explain(verdict, "coupons", issued, answers, told.unknown);
}

fn pieces(verdict: &mut Verdict, crowd: &Crowd, told: &Told, left: u64) {
    let (stock, sold) = (crowd.pieces, told.pieces);
    verdict.claim(
        sold <= stock,
        format!("{sold} of {stock} pieces were sold: nothing was oversold."),
        format!("{sold} pieces were sold, and there were {stock}."),
    );
    verdict.claim(
        left == 0,
        "The flash sale is sold out.",
        format!("{left} pieces of the flash sale are left (give it more users, or more time)."),
    );
    explain(verdict, "pieces", stock.saturating_sub(left), sold, told.unknown);
}

/// What left the shop, and what users know of: the same, but for those who never got an answer.
fn explain(verdict: &mut Verdict, what: &str, left: u64, known: u64, unknown: u64) {
    if left != known {
        verdict.claim(
            known < left && left - known <= unknown,
            format!("{left} {what} left the shop; of {}, users never got an answer.", left - known),
            format!("{left} {what} left the shop, users know of {known}, and {unknown} never got an answer."),
        );
    }
}

fn wallets(verdict: &mut Verdict, told: &Told) {
    let Told { wallets, wrong_wallets, orders, cancelled, .. } = told;
    let text = format!("{orders} orders and {cancelled} cancellations, {wallets} looks into wallets");
    let first = wrong_wallets.first().map_or("", String::as_str);
    verdict.claim(
        wrong_wallets.is_empty(),
        format!("{text}: each wallet held what its user had reckoned."),
        format!("{text}: {} were wrong, the first: {first}.", wrong_wallets.len()),
    );
}

/// Each order and cancellation is a message for the data platform.
async fn messages(verdict: &mut Verdict, shop: &Shop) -> Outcome<()> {
    let events: i64 =
        sqlx::query_scalar("SELECT count(*) + count(*) FILTER (WHERE status = 'cancelled') FROM orders")
            .fetch_one(&shop.pool)
            .await?;
    let delivered = i64::from(shop.empty_queue().await?);
    verdict.claim(
        delivered >= events,
        format!("RabbitMQ has a message for each of {events} orders and cancellations."),
        format!("RabbitMQ has {delivered} messages for {events} orders and cancellations."),
    );
    Ok(())
}
