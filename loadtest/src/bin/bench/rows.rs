//! The rows: the requests that each sends, the answer that it expects, and the number in PostgreSQL
//! that proves it.

use rushgate_loadtest::http::request;
use rushgate_loadtest::shop::{Instance, token};
use rushgate_loadtest::{Outcome, say};

use crate::wrk::{Gaps, Plan, scattered};

/// Users with a wallet, shared by the rows that order, read and charge.
pub const POOL: u64 = 100_000;
/// Products in the shop.
pub const PRODUCTS: u64 = 20;
/// Coupons of the template that is sold out.
const FIRST: u64 = 10;
const NEVER_SOLD_OUT: u64 = 1_000_000_000;
/// The maximum balance of a wallet.
const FULL_WALLET: u64 = 1_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Row {
    Issue,
    SoldOut,
    Already,
    Order1,
    Order3,
    Charge,
    List,
    Read,
    IssueTokens,
    IssueKeys,
    Order1Keys,
    Lines3,
    Hold,
    Confirm,
}

impl Row {
    pub const ALL: [Row; 14] = [
        Row::Issue,
        Row::SoldOut,
        Row::Already,
        Row::Order1,
        Row::Order3,
        Row::Charge,
        Row::List,
        Row::Read,
        Row::IssueTokens,
        Row::IssueKeys,
        Row::Order1Keys,
        Row::Lines3,
        Row::Hold,
        Row::Confirm,
    ];

    pub fn named(name: &str) -> Option<Row> {
        Row::ALL.into_iter().find(|row| row.name() == name)
    }

    pub fn name(self) -> &'static str {
        match self {
            Row::Issue => "issue",
            Row::SoldOut => "sold-out",
            Row::Already => "already",
            Row::Order1 => "order1",
            Row::Order3 => "order3",
            Row::Charge => "charge",
            Row::List => "list",
            Row::Read => "read",
            Row::IssueTokens => "issue-tokens",
            Row::IssueKeys => "issue-keys",
            Row::Order1Keys => "order1-keys",
            Row::Lines3 => "lines3",
            Row::Hold => "hold",
            Row::Confirm => "confirm",
        }
    }

    pub fn what(self) -> &'static str {
        match self {
            Row::Issue => "issue a coupon, one hot template, distinct users",
            Row::SoldOut => "refused: sold out",
            Row::Already => "refused: already issued",
            Row::Order1 => "order, 1 product",
            Row::Order3 => "order, 3 products and a coupon",
            Row::Charge => "charge a wallet",
            Row::List => "list products",
            Row::Read => "read a wallet",
            Row::IssueTokens => "issue, each user with a token of its own",
            Row::IssueKeys => "issue, each with an Idempotency-Key",
            Row::Order1Keys => "order, 1 product, each with an Idempotency-Key",
            Row::Lines3 => "order, 3 products, no coupon",
            Row::Hold => "order that is paid outside, 1 product: hold it",
            Row::Confirm => "confirm that a held order was paid outside",
        }
    }

    /// The minimum ratio to the empty handler. Rows without a target are measured only if they are
    /// selected.
    pub fn target(self) -> Option<f64> {
        match self {
            Row::Issue | Row::Already => Some(0.40),
            Row::SoldOut => Some(0.80),
            Row::Order1 => Some(0.30),
            Row::Order3 => Some(0.20),
            Row::Charge => Some(0.35),
            Row::List => Some(0.60),
            Row::Read => Some(0.45),
            Row::IssueTokens | Row::IssueKeys | Row::Order1Keys | Row::Lines3 => None,
            Row::Hold | Row::Confirm => None,
        }
    }

    /// The expected answer (status and code), as wrk's script counts it.
    pub fn expected(self) -> &'static str {
        match self {
            Row::SoldOut => "409 sold-out",
            Row::Already => "409 already-issued",
            Row::List | Row::Read | Row::Confirm => "200",
            _ => "201",
        }
    }

    /// The expected answer, as the instance's metric counts it; see `Instance::answers`.
    pub fn expected_metric(self) -> String {
        let route = match self {
            Row::Order1 | Row::Order3 | Row::Order1Keys | Row::Lines3 | Row::Hold => {
                "POST /v1/orders"
            }
            Row::Confirm => "POST /v1/orders/{id}/confirm",
            Row::Charge => "POST /v1/users/{user}/wallet/charges",
            Row::List => "GET /v1/products",
            Row::Read => "GET /v1/users/{user}/wallet",
            _ => "POST /v1/coupon-templates/{id}/coupons",
        };
        format!("{route} {}", self.expected())
    }

    /// A number in PostgreSQL that grows by one with each success, and that the audit compares with
    /// the tables. For rows without changes, a number that must not grow.
    pub fn truth(self) -> &'static str {
        match self {
            // A held order emits nothing before it is confirmed.
            Row::Hold => "SELECT count(*) FROM orders WHERE status = 'pending'",
            Row::Order1 | Row::Order3 | Row::Order1Keys | Row::Lines3 | Row::Confirm => {
                "SELECT events_written FROM cell_cursors WHERE cell = 0"
            }
            Row::Charge => "SELECT sum(balance)::bigint FROM wallets WHERE user_id < 'u'",
            _ => "SELECT sum(issued)::bigint FROM coupon_templates",
        }
    }

    pub fn changes_something(self) -> bool {
        !matches!(self, Row::SoldOut | Row::Already | Row::List | Row::Read)
    }
}

/// What the shop contains, and how much of it has been used.
#[derive(Default)]
pub struct Contents {
    products: bool,
    templates: Vec<&'static str>,
    wallets: bool,
    charge_wallets: bool,
    holders: bool,
    /// Number of users who have requested the hot template's coupon.
    users: u64,
    /// Coupons issued for orders, from templates `meal-0`, `meal-1`, …; one per user and template.
    meals: u64,
}

impl Contents {
    /// Creates what the row needs, unless it exists already.
    pub fn prepare(&mut self, instance: &Instance, row: Row) -> Outcome<()> {
        match row {
            Row::Issue | Row::IssueTokens | Row::IssueKeys => {
                self.template(instance, "rush", NEVER_SOLD_OUT)
            }
            Row::SoldOut => {
                let begin = !self.templates.contains(&"gone");
                self.template(instance, "gone", FIRST)?;
                match begin {
                    true => instance.fill(FIRST, |_| coupons_of("gone"), user_body, |_, _| {}),
                    false => Ok(()),
                }
            }
            Row::Already => {
                self.template(instance, "held", NEVER_SOLD_OUT)?;
                if !std::mem::replace(&mut self.holders, true) {
                    say(format_args!("  {POOL} users with a coupon"));
                    instance.fill(POOL, |_| coupons_of("held"), user_body, |_, _| {})?;
                }
                Ok(())
            }
            Row::Charge => {
                if !std::mem::replace(&mut self.charge_wallets, true) {
                    say(format_args!("  {POOL} wallets to charge"));
                    charge(instance, 'c', 1)?;
                }
                Ok(())
            }
            Row::List | Row::Hold | Row::Confirm => self.products(instance),
            Row::Order1 | Row::Order3 | Row::Order1Keys | Row::Lines3 | Row::Read => {
                self.products(instance)?;
                if !std::mem::replace(&mut self.wallets, true) {
                    say(format_args!("  {POOL} wallets that are full"));
                    charge(instance, 'u', FULL_WALLET)?;
                }
                Ok(())
            }
        }
    }

    fn template(&mut self, instance: &Instance, id: &'static str, max_issued: u64) -> Outcome<()> {
        if !self.templates.contains(&id) {
            instance.put_template(id, max_issued)?;
            self.templates.push(id);
        }
        Ok(())
    }

    fn products(&mut self, instance: &Instance) -> Outcome<()> {
        if !std::mem::replace(&mut self.products, true) {
            for number in 1..=PRODUCTS {
                instance.put_product(&format!("p{number:02}"), number * 100, NEVER_SOLD_OUT)?;
            }
        }
        Ok(())
    }

    /// The requests of one drive. If each request needs preparation, there are at most `count`.
    pub fn plan(&mut self, instance: &Instance, row: Row, count: u64) -> Outcome<Plan> {
        let gaps = match row {
            Row::List => Gaps::Same,
            Row::Issue | Row::SoldOut | Row::IssueKeys | Row::Hold => self.new_users(),
            Row::Already | Row::Order1 | Row::Lines3 | Row::Charge | Row::Read => {
                Gaps::Pool { pool: POOL }
            }
            Row::IssueTokens => self.users_with_tokens(count)?,
            Row::Order1Keys => self.users_with_keys(count),
            Row::Order3 => self.users_with_coupons(instance, count)?,
            Row::Confirm => self.held_orders(instance, count)?,
        };
        Ok(Plan { parts: parts(row)?, gaps })
    }

    /// Users that were not used before; enough for any drive.
    fn new_users(&mut self) -> Gaps {
        const ENOUGH: u64 = 10_000_000;
        let from = self.users;
        self.users += ENOUGH;
        Gaps::New { from }
    }

    fn users_with_tokens(&mut self, count: u64) -> Outcome<Gaps> {
        let users = self.users..self.users + count;
        self.users = users.end;
        let mut lines = Vec::new();
        let mut first = 0;
        for number in users {
            let user = format!("u{:010}", scattered(number));
            let token = token(&user, "shop")?;
            first = token.len();
            lines.push(token + &user[1..]);
        }
        Ok(Gaps::Lines { lines, first })
    }

    /// An idempotency key is used only once, so keys cannot come from a pool.
    fn users_with_keys(&mut self, count: u64) -> Gaps {
        let keys = self.users..self.users + count;
        self.users = keys.end;
        let line = |key: u64| format!("{key:010}{:010}", key % POOL);
        Gaps::Lines { lines: keys.map(line).collect(), first: 10 }
    }

    /// Issues one coupon for each order of the drive.
    fn users_with_coupons(&mut self, instance: &Instance, count: u64) -> Outcome<Gaps> {
        let mut lines = vec![];
        while (lines.len() as u64) < count {
            let template = format!("meal-{}", self.meals);
            self.meals += 1;
            instance.put_template(&template, NEVER_SOLD_OUT)?;
            let wanted = POOL.min(count - lines.len() as u64);
            instance.fill(
                wanted,
                |_| coupons_of(&template),
                user_body,
                |index, answer| {
                    let text = String::from_utf8_lossy(answer);
                    if let Some((_, rest)) = text.split_once("\"coupon_id\":\"") {
                        lines.push(format!("{index:010}{}", &rest[..36]));
                    }
                },
            )?;
        }
        Ok(Gaps::Lines { lines, first: 10 })
    }

    /// Places one order for each confirmation of the drive, each by a user of its own, so that the
    /// limit on a user's pending orders is never met. Their holds outlast the drive.
    fn held_orders(&mut self, instance: &Instance, count: u64) -> Outcome<Gaps> {
        let from = self.users;
        self.users += count;
        let mut lines = vec![];
        instance.fill(
            count,
            |_| "/v1/orders".into(),
            |index| held_order(&format!("{:010}", scattered(from + index))),
            |index, answer| {
                let text = String::from_utf8_lossy(answer);
                if let Some((_, rest)) = text.split_once("\"order_id\":\"") {
                    lines.push(format!("{}{index:010}", &rest[..36]));
                }
            },
        )?;
        Ok(Gaps::Lines { lines, first: 36 })
    }
}

/// An order of one product that is held for an hour, the longest time.
fn held_order(user: &str) -> String {
    format!(
        "{{\"user_id\":\"h{user}\",\"payment\":\"external\",\"hold_secs\":3600,\
         \"items\":[{{\"product_id\":\"p01\",\"quantity\":1}}]}}"
    )
}

fn user_body(index: u64) -> String {
    format!("{{\"user_id\":\"u{index:010}\"}}")
}

fn coupons_of(template: &str) -> String {
    format!("/v1/coupon-templates/{template}/coupons")
}

/// Charges every wallet of a pool.
fn charge(instance: &Instance, prefix: char, amount: u64) -> Outcome<()> {
    let path = |index| format!("/v1/users/{prefix}{index:010}/wallet/charges");
    instance.fill(POOL, path, |_| format!("{{\"amount\":{amount}}}"), |_, _| {})
}

/// A row's request, split at its gaps.
pub fn parts(row: Row) -> Outcome<Vec<String>> {
    // Placeholders with the lengths of the inserted texts, so that Content-Length is right.
    const GAP: &str = "##########";
    const KEY_GAP: &str = "@@@@@@@@@@";
    const ID_GAP: &str = "@@@@@@@@-@@@@-@@@@-@@@@-@@@@@@@@@@@@";
    let backend = token("bench-backend", "service")?;
    let key = format!("Idempotency-Key: {KEY_GAP}\r\n");
    let user = format!("{{\"user_id\":\"u{GAP}\"}}");
    let one =
        format!("{{\"user_id\":\"u{GAP}\",\"items\":[{{\"product_id\":\"p01\",\"quantity\":1}}]}}");
    let lines = ["p02", "p03", "p04"]
        .map(|id| format!("{{\"product_id\":\"{id}\",\"quantity\":1}}"))
        .join(",");
    let three =
        format!("{{\"user_id\":\"u{GAP}\",\"coupon_id\":\"{ID_GAP}\",\"items\":[{lines}]}}");
    let without = format!("{{\"user_id\":\"u{GAP}\",\"items\":[{lines}]}}");
    let payment = format!("{{\"payment_reference\":\"card-{GAP}\"}}");
    let post = |path: &str, body: &str| request("POST", path, Some(&backend), "", body);
    let rush = &coupons_of("rush");
    let text = match row {
        Row::Issue => post(rush, &user),
        Row::SoldOut => post(&coupons_of("gone"), &user),
        Row::Already => post(&coupons_of("held"), &user),
        Row::Order1 => post("/v1/orders", &one),
        Row::Order3 => post("/v1/orders", &three),
        Row::Lines3 => post("/v1/orders", &without),
        Row::Charge => post(&format!("/v1/users/c{GAP}/wallet/charges"), "{\"amount\":1}"),
        Row::List => request("GET", "/v1/products", None, "", ""),
        Row::Read => request("GET", &format!("/v1/users/u{GAP}/wallet"), Some(&backend), "", ""),
        Row::IssueTokens => request("POST", rush, Some(KEY_GAP), "", &user),
        Row::IssueKeys => request("POST", rush, Some(&backend), &key, &user),
        Row::Order1Keys => request("POST", "/v1/orders", Some(&backend), &key, &one),
        Row::Hold => post("/v1/orders", &held_order(GAP)),
        Row::Confirm => post(&format!("/v1/orders/{ID_GAP}/confirm"), &payment),
    };
    let text = text.replace(ID_GAP, GAP).replace(KEY_GAP, GAP);
    Ok(text.split(GAP).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_request_says_the_length_of_its_body() {
        for row in Row::ALL {
            let mut parts = parts(row).unwrap();
            // What is inserted into the gaps of the body, if it is not a number of ten digits.
            let id = if row == Row::Order3 { "7".repeat(36) } else { "7".repeat(10) };
            let last = parts.pop().unwrap();
            let text = parts.join("7777777777") + &id + &last;
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            let said = head.split("Content-Length: ").nth(1);
            let said = said.map(|rest| rest.split("\r\n").next().unwrap().parse().unwrap());
            assert_eq!(said.unwrap_or(0), body.len(), "{}: {text}", row.name());
            assert!(parts.len() <= 2, "{}: the script fills at most two gaps", row.name());
        }
    }

    #[test]
    fn every_row_has_a_name_and_says_what_it_proves() {
        for row in Row::ALL {
            assert_eq!(Row::named(row.name()), Some(row));
            let changes = row.expected() == "201" || row == Row::Confirm;
            assert_eq!(row.changes_something(), changes, "{}", row.name());
        }
    }
}
