//! The verdict on a product that was sold by card: the shop's own records of the orders, compared
//! with what users read in their answers and with the stock as it was seen.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rushgate_loadtest::Outcome;
use rushgate_loadtest::holds::{Hold, moment_ms, seen_back};
use serde_json::Value;

use crate::card_orders::{CardOrders, Ending};
use crate::crowd::{Crowd, PIECES_PER_USER, number};
use crate::left::{PIECES_BY_CARD, Series};
use crate::verdict::Verdict;

/// An ended hold must be given back, and be seen in stock, within this time.
const RETURN_LIMIT_MS: i64 = 1_000;
const PAGE: usize = 100;

/// What was seen of the shop during the run.
pub struct Observed<'a> {
    pub left: &'a [Series],
    /// The moment from which the samples count.
    pub began: SystemTime,
    /// When the crowd had left, in seconds since then. From then on, only ended holds change the
    /// stock.
    pub crowd_left_s: f64,
}

/// An order as the shop has it. Times are in ms since 1970, by the shop's clock.
#[derive(Clone, Debug)]
struct Record {
    id: String,
    user: String,
    pieces: u64,
    status: String,
    ordered_ms: i64,
    hold_ends_ms: i64,
    /// When it was cancelled or expired.
    ended_ms: Option<i64>,
}

impl Record {
    fn from_answer(order: &Value) -> Outcome<Self> {
        let text = |name: &str| order[name].as_str().unwrap_or_default().to_owned();
        let moment = |name| moment_ms(order, name).ok_or(format!("an order without {name}"));
        let items = order["items"].as_array().into_iter().flatten();
        Ok(Self {
            id: text("order_id"),
            user: text("user_id"),
            pieces: items.map(|item| number(item, "quantity")).sum(),
            status: text("status"),
            ordered_ms: moment("ordered_at")?,
            hold_ends_ms: moment("hold_expires_at")?,
            ended_ms: moment_ms(order, "cancelled_at").or(moment_ms(order, "expired_at")),
        })
    }

    fn is(&self, status: &str) -> bool {
        self.status == status
    }
}

/// Adds the statements about the product that was sold by card.
pub async fn judge(
    verdict: &mut Verdict,
    crowd: &Crowd,
    told: &CardOrders,
    observed: &Observed<'_>,
) -> Outcome<()> {
    let product = crowd.api.get(&format!("/v1/products/{}", crowd.by_card())).await?;
    let orders = orders(crowd).await?;
    pieces(verdict, crowd.card_pieces, number(&product, "stock"), &orders);
    limit(verdict, &orders);
    endings(verdict, &orders, told);
    late_payments(verdict, told);
    given_back(verdict, &orders, told, observed)
}

/// All orders of the product.
async fn orders(crowd: &Crowd) -> Outcome<Vec<Record>> {
    let (mut found, mut after) = (vec![], String::new());
    loop {
        let path = format!("/v1/orders?product_id={}&limit={PAGE}{after}", crowd.by_card());
        let page = crowd.api.get(&path).await?;
        for order in page["data"].as_array().into_iter().flatten() {
            found.push(Record::from_answer(order)?);
        }
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => return Ok(found),
        }
    }
}

/// Every piece is sold or in stock.
fn pieces(verdict: &mut Verdict, all: u64, stock: u64, orders: &[Record]) {
    let sum = |status| orders.iter().filter(|it| it.is(status)).map(|it| it.pieces).sum::<u64>();
    let (sold, pending) = (sum("paid"), sum("pending"));
    verdict.claim(
        sold + stock == all && pending == 0,
        format!(
            "Of {all} pieces, {sold} were sold and {stock} are in stock: none was lost, none sold twice."
        ),
        format!(
            "Of {all} pieces, {sold} were sold, {stock} are in stock and {pending} are still held."
        ),
    );
}

/// No user had more pieces than allowed at any moment.
fn limit(verdict: &mut Verdict, orders: &[Record]) {
    let most = most_at_once(orders);
    let over: Vec<&&str> =
        most.iter().filter(|(_, most)| **most > PIECES_PER_USER).map(|(user, _)| user).collect();
    verdict.claim(
        over.is_empty(),
        format!("None of {} buyers ever had more than {PIECES_PER_USER} pieces.", most.len()),
        format!(
            "{} buyers had more than {PIECES_PER_USER} pieces, the first: {}.",
            over.len(),
            over.first().map_or("", |user| user)
        ),
    );
}

/// The most pieces that each user had bought or held at the same time.
fn most_at_once(orders: &[Record]) -> BTreeMap<&str, u64> {
    // Pieces that are given back at the moment of an order come before it.
    let mut changes: Vec<(i64, bool, &Record)> = vec![];
    for order in orders {
        changes.push((order.ordered_ms, true, order));
        changes.extend(order.ended_ms.map(|at| (at, false, order)));
    }
    changes.sort_by_key(|(at, takes, _)| (*at, *takes));
    let (mut now, mut most) = (HashMap::<&str, u64>::new(), BTreeMap::new());
    for (_, takes, order) in changes {
        let pieces = now.entry(&order.user).or_default();
        *pieces = if takes { *pieces + order.pieces } else { *pieces - order.pieces.min(*pieces) };
        let highest = most.entry(order.user.as_str()).or_default();
        *highest = (*pieces).max(*highest);
    }
    most
}

/// Every order is in the state in which its user left it.
fn endings(verdict: &mut Verdict, orders: &[Record], told: &CardOrders) {
    let known: HashMap<&str, &str> =
        orders.iter().map(|order| (order.id.as_str(), order.status.as_str())).collect();
    let (mut counts, mut wrong) = ([0; 3], vec![]);
    for (id, ending) in &told.endings {
        let (place, wanted) = match ending {
            Ending::Paid => (0, "paid"),
            Ending::Cancelled => (1, "cancelled"),
            Ending::Expired => (2, "expired"),
            Ending::Unknown => continue,
        };
        counts[place] += 1;
        let status = known.get(id.as_str()).copied().unwrap_or("missing");
        if status != wanted {
            wrong.push(format!("{id} is {status} instead of {wanted}"));
        }
    }
    let [paid, cancelled, expired] = counts;
    verdict.claim(
        wrong.is_empty(),
        format!(
            "{paid} orders were paid, {cancelled} cancelled and {expired} expired, each as its user left it."
        ),
        format!(
            "{} orders are not as their users left them, the first: {}.",
            wrong.len(),
            wrong.first().map_or("", String::as_str)
        ),
    );
}

fn late_payments(verdict: &mut Verdict, told: &CardOrders) {
    let CardOrders { late, late_refused, late_others, .. } = told;
    let unanswered = late - late_refused.min(late);
    verdict.claim(
        late_refused == late,
        format!("All {late} payments that came too late were refused with `hold-expired`."),
        format!(
            "{unanswered} of {late} payments that came too late were not refused with `hold-expired`{}.",
            late_others.first().map_or(String::new(), |other| format!(", the first: {other}"))
        ),
    );
}

/// Every hold that ended was given back in time: by the shop's records, and, once the crowd had
/// left, by the stock as it was seen.
fn given_back(
    verdict: &mut Verdict,
    orders: &[Record],
    told: &CardOrders,
    observed: &Observed<'_>,
) -> Outcome<()> {
    let expired: Vec<&Record> = orders.iter().filter(|order| order.is("expired")).collect();
    let recorded = expired.iter().filter_map(|it| Some(it.ended_ms? - it.hold_ends_ms)).max();
    let Some(recorded) = recorded else {
        verdict.tell("No hold ended.");
        return Ok(());
    };
    let holds: Vec<Hold> = orders
        .iter()
        .filter(|order| order.is("expired") || order.is("pending"))
        .map(|order| Hold { ends_ms: order.hold_ends_ms, pieces: order.pieces })
        .collect();
    let seen = seen_back(&holds, &stock_after_the_crowd(observed, told)?);
    let latest = seen.iter().copied().max().flatten().unwrap_or_default();
    let never = seen.iter().filter(|delay| delay.is_none()).count();
    let of_them = format!("{} holds ended", expired.len());
    let seconds = |ms: i64| ms as f64 / 1_000.0;
    let limit = seconds(RETURN_LIMIT_MS);
    let figures = format!(
        "at most {:.2} s after their end by the shop's records; the pieces of {} were seen in stock within {:.2} s",
        seconds(recorded),
        seen.len() - never,
        seconds(latest)
    );
    verdict.claim(
        never == 0 && recorded <= RETURN_LIMIT_MS && latest <= RETURN_LIMIT_MS,
        format!("{of_them} and were given back {figures} (limit {limit} s)."),
        format!("{of_them}, given back {figures}, those of {never} never (limit {limit} s)."),
    );
    Ok(())
}

/// The samples of the stock from when the crowd had left, by the shop's clock. Where it is not known
/// exactly, samples count as later, so that no hold seems to be given back too early.
fn stock_after_the_crowd(observed: &Observed<'_>, told: &CardOrders) -> Outcome<Vec<(i64, u64)>> {
    let began_ms = i64::try_from(observed.began.duration_since(UNIX_EPOCH)?.as_millis())?;
    let ahead_ms = told.clock_ahead_ms.unwrap_or_default();
    let series = observed.left.iter().find(|series| series.name == PIECES_BY_CARD);
    let samples = series.map_or(&[][..], |series| &series.samples);
    let at_ms = |s: f64| i64::try_from(Duration::from_secs_f64(s).as_millis());
    samples
        .iter()
        .filter(|(at, _)| *at >= observed.crowd_left_s)
        .map(|(at, stock)| Ok((began_ms + at_ms(*at)? - ahead_ms, *stock)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An order of one user: pieces, status, from when on and until when it had them.
    fn order(id: &str, pieces: u64, status: &str, from: i64, until: Option<i64>) -> Record {
        Record {
            id: id.into(),
            user: "u".into(),
            pieces,
            status: status.into(),
            ordered_ms: from,
            hold_ends_ms: from + 60_000,
            ended_ms: until,
        }
    }

    fn told(endings: &[(&str, Ending)]) -> CardOrders {
        let endings = endings.iter().map(|(id, ending)| ((*id).to_owned(), *ending)).collect();
        CardOrders { endings, ..CardOrders::default() }
    }

    fn is_good(say: impl FnOnce(&mut Verdict)) -> bool {
        let mut verdict = Verdict::default();
        say(&mut verdict);
        verdict.is_good()
    }

    #[test]
    fn every_piece_is_sold_or_in_stock() {
        let orders = [order("a", 2, "paid", 0, None), order("b", 1, "expired", 0, Some(60_100))];
        assert!(is_good(|verdict| pieces(verdict, 5, 3, &orders)));
        assert!(!is_good(|verdict| pieces(verdict, 5, 2, &orders)), "a piece was lost");
        assert!(!is_good(|verdict| pieces(verdict, 5, 4, &orders)), "a piece was sold twice");
        let held = [order("a", 2, "paid", 0, None), order("b", 1, "pending", 0, None)];
        assert!(!is_good(|verdict| pieces(verdict, 5, 2, &held)), "a hold did not end");
    }

    #[test]
    fn the_limit_is_on_what_a_user_has_at_the_same_time() {
        let mut orders = vec![
            order("a", 2, "cancelled", 0, Some(500)),
            order("b", 2, "expired", 500, Some(60_500)),
            order("c", 1, "paid", 60_500, None),
        ];
        assert!(is_good(|verdict| limit(verdict, &orders)));
        orders.push(order("d", 1, "cancelled", 700, Some(800)));
        assert_eq!(most_at_once(&orders)["u"], 3);
        assert!(!is_good(|verdict| limit(verdict, &orders)));
    }

    #[test]
    fn an_order_must_be_as_its_user_left_it() {
        let orders = [order("a", 1, "paid", 0, None), order("b", 1, "expired", 0, Some(60_100))];
        let good = told(&[("a", Ending::Paid), ("b", Ending::Expired)]);
        assert!(is_good(|verdict| endings(verdict, &orders, &good)));
        for bad in [("a", Ending::Expired), ("b", Ending::Paid), ("c", Ending::Paid)] {
            assert!(!is_good(|verdict| endings(verdict, &orders, &told(&[bad]))), "{bad:?}");
        }
        assert!(is_good(|verdict| endings(verdict, &orders, &told(&[("b", Ending::Unknown)]))));
    }

    #[test]
    fn a_payment_that_is_accepted_or_unanswered_too_late_is_named() {
        let refused = CardOrders { late: 2, late_refused: 2, ..CardOrders::default() };
        assert!(is_good(|verdict| late_payments(verdict, &refused)));
        let unanswered = CardOrders { late: 3, ..refused.clone() };
        assert!(!is_good(|verdict| late_payments(verdict, &unanswered)));
        let others = vec!["x: 200".to_owned()];
        let accepted = CardOrders { late_others: others, ..unanswered };
        let mut verdict = Verdict::default();
        late_payments(&mut verdict, &accepted);
        assert!(verdict.to_string().contains("the first: x: 200."), "{verdict}");
    }

    /// Whether a hold that ended at 60 s, and whose piece was seen at `seen_s`, is good.
    fn returns(expired_ms: i64, seen_s: f64, clock_ahead_ms: i64) -> bool {
        let orders = [order("a", 1, "expired", 0, Some(expired_ms))];
        let samples = vec![(1.0, 9), (40.0, 0), (seen_s, 1)];
        let left = [Series { name: PIECES_BY_CARD, limit: 9, samples }];
        let observed = Observed { left: &left, began: UNIX_EPOCH, crowd_left_s: 30.0 };
        let told = CardOrders { clock_ahead_ms: Some(clock_ahead_ms), ..CardOrders::default() };
        let mut verdict = Verdict::default();
        given_back(&mut verdict, &orders, &told, &observed).unwrap();
        verdict.is_good()
    }

    #[test]
    fn a_hold_must_be_given_back_within_a_second_by_the_records_and_by_the_stock() {
        assert!(returns(60_200, 60.9, 0));
        assert!(!returns(61_001, 60.9, 0), "by the records");
        assert!(!returns(60_200, 61.1, 0), "by the stock");
        assert!(returns(60_200, 61.1, 200), "this machine's clock is ahead");
        assert!(!returns(60_200, 60.9, -200), "the shop's clock is ahead");
    }
}
