//! Runs one case. Each step runs on Redis and on the model, and both results are compared at once.
//! At the end, everything that Redis holds is compared with the model.
//!
//! A [`Bench`] (one Redis) serves all cases. A [`Run`] holds the state of one case; a [`Tally`]
//! counts what the cases exercised.

use std::collections::BTreeMap;

use fred::prelude::*;
use jiff::Timestamp;
use rushgate::domain::OrderStatus;
use rushgate::domain::limits::{COUPON_USABLE_MS, IDEMPOTENCY_KEPT_MS};
use rushgate::domain::wire;
use rushgate::gate::script::{CellState, Decided, Reply};
use rushgate::gate::{self, CancelRefusal, ConfirmRefusal, IssueRefusal, OrderRefusal};
use rushgate::log::entry::genesis_tip;
use rushgate::log::reader::LogReader;
use rushgate::redis::control::{CLAIM_EPOCH, OPEN_EPOCH};
use rushgate::redis::keys::{DAY_MS, Keys};
use rushgate_local_servers::{DataFolder, RedisOptions, RedisServer};

use super::asking::{Asking, Sent};
use super::kind::{Body, Kind, ScriptAnswer, Scripts, Told};
use super::plan::*;
use super::reading;
use super::state::{Record, State, day_of};
use crate::history::model::{Fact, Order, Refusal, Request, Shop, Verdict, facts_of, format_of};

/// 2036-07-18; no deadline passes before 2096.
const AHEAD_DAY: i64 = 24_305;
const NO_DEADLINE_MS: i64 = 4_000_000_000_000;
const CELL: u32 = 0;
/// Lower than the number of key names per user, so that the limit is reached.
const KEYS_PER_DAY: u64 = 4;

/// The Redis of a test, shared by all cases. Each case begins by emptying it.
pub struct Bench {
    _redis: RedisServer,
    pub client: Client,
    reader: LogReader,
}

impl Bench {
    /// Without persistence: the scripts' decisions do not depend on it, and other tests cover
    /// durability.
    pub async fn start() -> Self {
        let mut options = RedisOptions::new(DataFolder::Scratch);
        options.extra_config.push("appendonly no".into());
        let redis = RedisServer::start(options).await.unwrap();
        let client = rushgate::redis::connect(&redis.url()).await.unwrap();
        let reader = LogReader::connect(&redis.url(), CELL).await.unwrap();
        Self { _redis: redis, client, reader }
    }
}

/// What the cases exercised.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub operations: u64,
    pub batches: u64,
    pub answers: BTreeMap<String, u64>,
    /// Requests and reads that a script deferred (`again`).
    pub asked_again: u64,
    pub largest_batch: usize,
    /// Lines of the largest order placed.
    pub most_lines: usize,
}

/// One script call, without its requests.
struct Call {
    kind: Kind,
    claim: Claim,
}

/// A running case.
struct Run<'a> {
    bench: &'a Bench,
    scripts: &'a Scripts,
    tally: &'a mut Tally,
    start: Start,
    keys: Keys,
    shop: Shop,
    asking: Asking,
    /// The clock in `meta`.
    clock_ms: i64,
    /// The tips of all entries, beginning with that of the empty log.
    tips: Vec<String>,
    /// The highest format version of an entry.
    format: u64,
    records: BTreeMap<(i64, String), Record>,
}

/// `Err` describes the first difference between Redis and the model.
pub async fn run(
    bench: &Bench,
    scripts: &Scripts,
    case: &Case,
    tally: &mut Tally,
) -> Result<(), String> {
    let mut run = Run::open(bench, scripts, tally, case).await?;
    for (n, step) in case.steps.iter().enumerate() {
        let outcome = match step {
            PlannedStep::Batch(batch) => run.batch(batch).await,
            PlannedStep::Clock(clock) => run.advance(*clock).await,
            PlannedStep::Read(reads) => run.read(reads).await,
        };
        outcome.map_err(|e| format!("step {n}: {e}"))?;
    }
    run.read(&reading::everything()).await.map_err(|e| format!("at the end: {e}"))?;
    let state = State::read(&bench.client, &run.keys).await?;
    state.compare(&run.expected_state()).map_err(|e| format!("at the end: {e}"))
}

fn wall_ms() -> i64 {
    Timestamp::now().as_millisecond()
}

fn shown(e: Error) -> String {
    format!("Redis: {e}")
}

impl<'a> Run<'a> {
    async fn open(
        bench: &'a Bench,
        scripts: &'a Scripts,
        tally: &'a mut Tally,
        case: &Case,
    ) -> Result<Self, String> {
        let clock_ms = match case.start {
            Start::Ahead { after_midnight_ms } => AHEAD_DAY * DAY_MS + after_midnight_ms,
            Start::Behind { by_ms } => wall_ms() - by_ms,
        };
        let keys = Keys::new(CELL, case.epoch);
        let tip = genesis_tip(CELL, case.epoch);
        let _: () = bench.client.flushall(false).await.map_err(shown)?;
        let epoch = case.epoch.to_string();
        let claimed = CLAIM_EPOCH
            .call(&bench.client, vec![Keys::meta(CELL)], vec![epoch.clone()])
            .await
            .map_err(shown)?;
        let args =
            [epoch, tip.clone(), clock_ms.to_string(), "0".into(), "0".into(), "open".into()];
        let opened = OPEN_EPOCH
            .call(&bench.client, vec![Keys::meta(CELL), keys.log()], args.to_vec())
            .await
            .map_err(shown)?;
        if !claimed || !opened {
            return Err("the epoch does not open".into());
        }
        let shop = Shop {
            keys_per_day: Some(KEYS_PER_DAY),
            most_versions: scripts.most_versions,
            ..Shop::default()
        };
        let (asking, records) = (Asking::default(), BTreeMap::new());
        Ok(Self {
            bench,
            scripts,
            tally,
            start: case.start,
            keys,
            shop,
            asking,
            clock_ms,
            tips: vec![tip],
            format: 1,
            records,
        })
    }

    /// The state in `meta` of a cell that serves.
    fn state(&self) -> &'static str {
        if self.format > 1 { "open-2" } else { "open" }
    }

    fn seq(&self) -> u64 {
        self.tips.len() as u64 - 1
    }

    /// The gate's time, as far as the test can know it before the call.
    fn now_ms(&self) -> i64 {
        self.clock_ms.max(wall_ms())
    }

    // ---- steps ----

    async fn advance(&mut self, clock: Clock) -> Result<(), String> {
        let now = self.now_ms();
        // Windows of ten years are not waited for: afterwards, nothing of the case would still be
        // valid.
        let near = |at: &i64| *at > now && *at < now + 400 * DAY_MS;
        let one_of = |ends: &mut dyn Iterator<Item = i64>, n: Nth| {
            let to_come: Vec<i64> = ends.filter(near).collect();
            nth(&to_come, n).copied()
        };
        let shop = &self.shop;
        let to = match clock {
            Clock::Idle { ms } => return self.set_clock(self.clock_ms - ms).await,
            Clock::By { ms } => Some(now + ms),
            Clock::ToMidnight { beyond_ms } => Some((day_of(now) + 1) * DAY_MS + beyond_ms),
            Clock::ToWindow { border, beyond_ms } => {
                let windows = shop.templates.values().map(|template| &template.terms);
                let mut borders = windows.flat_map(|terms| [terms.issue_from, terms.issue_until]);
                one_of(&mut borders, border).map(|at| at + beyond_ms)
            }
            Clock::ToCouponsEnd { used, coupon, beyond_ms } => {
                let coupons =
                    shop.coupons.values().filter(|coupon| !used || coupon.order_id.is_some());
                let mut ends = coupons.map(|coupon| coupon.issued_at + COUPON_USABLE_MS);
                one_of(&mut ends, coupon).map(|at| at + beyond_ms)
            }
            Clock::ToHoldEnd { order, beyond_ms } => {
                let pending = shop.pending_of.values().flatten().map(|id| &shop.orders[id]);
                let mut ends: Vec<i64> = pending.filter_map(Order::hold_expires_at).collect();
                ends.sort_unstable();
                one_of(&mut ends.into_iter(), order).map(|at| at + beyond_ms)
            }
            Clock::ToSale { border, beyond_ms } => {
                let rules = shop.products.values().map(|product| &product.rules);
                let mut borders =
                    rules.flat_map(|rules| [rules.sale_from, rules.sale_until]).flatten();
                one_of(&mut borders, border).map(|at| at + beyond_ms)
            }
            Clock::ToKeysEnd { key, beyond_ms } => {
                let mut ends =
                    shop.records.values().map(|record| record.decided_at + IDEMPOTENCY_KEPT_MS);
                one_of(&mut ends, key).map(|at| at + beyond_ms)
            }
        };
        match to.filter(near) {
            Some(to) => self.set_clock(to).await,
            None => Ok(()),
        }
    }

    async fn set_clock(&mut self, to_ms: i64) -> Result<(), String> {
        self.clock_ms = to_ms;
        self.set_meta("clock", to_ms).await
    }

    async fn set_meta(
        &self,
        field: &str,
        value: impl TryInto<Value, Error: Into<Error>> + Send,
    ) -> Result<(), String> {
        let value: Value = value.try_into().map_err(|e| shown(e.into()))?;
        let _: i64 =
            self.bench.client.hset(Keys::meta(CELL), (field, value)).await.map_err(shown)?;
        Ok(())
    }

    async fn read(&mut self, reads: &[Read]) -> Result<(), String> {
        let mut reads: Vec<&Read> = reads.iter().collect();
        while !reads.is_empty() {
            let head = (self.keys.epoch, self.seq(), self.tips.last());
            let wanted: Vec<_> =
                reads.iter().map(|read| reading::wanted(&self.shop, read)).collect();
            let (head, wanted) = (packed(&head)?, packed(&wanted)?);
            let script = self.scripts.read;
            let reply =
                script.call(&self.bench.client, script.keys(&self.keys, 0), head, wanted).await;
            let decided = match reply {
                Ok(Reply::Decided(decided)) => decided,
                other => return Err(format!("the reads {reads:?} got no answers: {other:?}")),
            };
            if decided.verdicts.len() != reads.len() {
                return Err(format!("{} answers to {} reads", decided.verdicts.len(), reads.len()));
            }
            let asked = reads.len();
            let mut again = Vec::new();
            for (read, answer) in reads.into_iter().zip(&decided.verdicts) {
                match script.to_ask_again(answer) {
                    Some(_) => again.push(read),
                    None => reading::compare(&self.shop, read, answer, decided.place.now)?,
                }
            }
            self.tally.asked_again += again.len() as u64;
            if again.len() == asked {
                return Err(format!("all reads are to be asked again: {again:?}"));
            }
            reads = again;
        }
        Ok(())
    }

    async fn batch(&mut self, batch: &Batch) -> Result<(), String> {
        let now = self.now_ms();
        let asked_at = wall_ms();
        let sent: Vec<(Sent, i64)> = batch
            .jobs
            .iter()
            .map(|job| {
                let sent = self.asking.ask(&self.shop, batch.kind, job, self.keys.epoch, now);
                (sent, self.deadline_ms(job.deadline, asked_at))
            })
            .collect();
        let (mut waiting, mut claim) = (sent, batch.claim);
        while !waiting.is_empty() {
            let asked = waiting.len();
            waiting = self.batch_once(batch.kind, claim, waiting).await?;
            self.tally.asked_again += waiting.len() as u64;
            if waiting.len() == asked {
                return Err(format!("all requests are to be asked again: {waiting:?}"));
            }
            claim = Claim::Last;
        }
        Ok(())
    }

    /// Returns the requests that the script deferred.
    async fn batch_once(
        &mut self,
        kind: Kind,
        claim: Claim,
        asked: Vec<(Sent, i64)>,
    ) -> Result<Vec<(Sent, i64)>, String> {
        let now = self.now_ms();
        let (sent, deadlines): (Vec<Sent>, Vec<i64>) = asked.into_iter().unzip();
        let batch = &Call { kind, claim };
        if matches!(batch.claim, Claim::Closed) {
            self.set_meta("state", "closed").await?;
        }
        let asked_at = wall_ms();
        let mut reply = self.call(batch, &sent, &deadlines, day_of(now)).await?;
        // The gate uses the server's clock, which may have passed midnight since.
        if let (Reply::Refused(refused), None) = (&reply, refusal_of(batch.claim))
            && refused.why == "day"
            && day_of(refused.place.now) != day_of(now)
        {
            reply = self.call(batch, &sent, &deadlines, day_of(refused.place.now)).await?;
        }
        if matches!(batch.claim, Claim::Closed) {
            self.set_meta("state", self.state()).await?;
        }
        match (reply, refusal_of(batch.claim)) {
            (Reply::Decided(decided), None) => {
                self.check_clock(&decided.place, asked_at)?;
                self.decided(batch.kind, sent, &deadlines, decided).await
            }
            (Reply::Refused(refused), Some(why)) if refused.why == why => {
                self.check_place(&refused.place)?;
                Ok(vec![])
            }
            (reply, why) => Err(format!(
                "{:?}, {:?}: to be refused: {why:?}; {reply:?}",
                batch.kind, batch.claim
            )),
        }
    }

    // ---- calling ----

    async fn call(
        &self,
        batch: &Call,
        sent: &[Sent],
        deadlines: &[i64],
        today: i64,
    ) -> Result<Reply, String> {
        let script = self.scripts.of(batch.kind);
        let epoch = self.keys.epoch + u64::from(matches!(batch.claim, Claim::OtherEpoch));
        let today = today - i64::from(matches!(batch.claim, Claim::OtherDay));
        let (seen, tip) = self.seen(batch.claim);
        // Nothing is applied during a case, so the backlog only grows. The limit allows one more
        // entry, so that its edge is always exercised.
        let limit = self.seq() + u64::from(!matches!(batch.claim, Claim::Backlog));
        let mut requests = gate::batch::Batch::with_capacity(0);
        for (sent, at) in sent.iter().zip(deadlines) {
            let key = sent.key.as_ref().map(packed).transpose()?;
            requests.add(*at, key.as_deref(), &packed(&sent.body)?).map_err(|e| e.to_string())?;
        }
        let (count, values) = requests.shape();
        let head = packed(&(epoch, seen, tip, today, limit, count, values, KEYS_PER_DAY))?;
        let keys = script.keys(&Keys::new(CELL, epoch), today);
        let reply = script.call(&self.bench.client, keys, head, requests.into_bytes()).await;
        reply.map_err(|e| format!("{:?} {e:?}; it was to decide {sent:?}", batch.kind))
    }

    fn deadline_ms(&self, deadline: Deadline, now: i64) -> i64 {
        match (deadline, self.start) {
            (Deadline::Ahead, _) => NO_DEADLINE_MS,
            (Deadline::In { ms }, Start::Behind { .. }) => now + ms,
            (Deadline::Soon | Deadline::In { .. }, _) => now + 60_000,
            (Deadline::Past { ms }, _) => now - ms,
        }
    }

    /// The entry that the caller claims to have seen.
    fn seen(&self, claim: Claim) -> (u64, String) {
        let another = || "f".repeat(40);
        let mut entries: Vec<(u64, &String)> = (0..).zip(&self.tips).skip(1).collect();
        entries.reverse();
        match claim {
            Claim::None => (0, String::new()),
            Claim::Later => (self.seq() + 1, another()),
            Claim::Other(n) => (nth(&entries, n).map_or(1, |(seq, _)| *seq), another()),
            Claim::Earlier(n) => {
                nth(&entries, n).map_or((0, String::new()), |(seq, tip)| (*seq, (*tip).clone()))
            }
            _ => (self.seq(), self.tips.last().cloned().unwrap_or_default()),
        }
    }

    // ---- comparing ----

    fn check_place(&self, place: &CellState) -> Result<(), String> {
        let is = (place.epoch, place.seq, Some(&place.tip), place.applied);
        let should = (self.keys.epoch, self.seq(), self.tips.last(), 0);
        if is == should {
            Ok(())
        } else {
            Err(format!("the log stands at {is:?}, it should at {should:?}"))
        }
    }

    fn check_clock(&self, place: &CellState, asked_at: i64) -> Result<(), String> {
        if place.time < asked_at
            || place.time > wall_ms()
            || place.now != place.time.max(self.clock_ms)
        {
            return Err(format!("asked at {asked_at}, meta.clock {}: {place:?}", self.clock_ms));
        }
        Ok(())
    }

    async fn decided(
        &mut self,
        kind: Kind,
        sent: Vec<Sent>,
        deadlines: &[i64],
        decided: Decided,
    ) -> Result<Vec<(Sent, i64)>, String> {
        let place = decided.place;
        if decided.verdicts.len() != sent.len() {
            return Err(format!("{} verdicts on {} requests", decided.verdicts.len(), sent.len()));
        }
        self.tally.batches += 1;
        self.tally.largest_batch = self.tally.largest_batch.max(sent.len());
        let (mut facts, mut raw_facts, mut passed_at) = (Vec::new(), Vec::new(), 0);
        let mut again = Vec::new();
        for (n, ((sent, deadline), verdict)) in
            sent.into_iter().zip(deadlines).zip(&decided.verdicts).enumerate()
        {
            if self.scripts.of(kind).to_ask_again(verdict).is_some() {
                again.push((sent, *deadline));
                continue;
            }
            let sent = &sent;
            let told = kind.told(verdict).map_err(|e| format!("request {n}: {e}"))?;
            let should = self.expect(sent, *deadline, &place);
            self.tally.operations += 1;
            *self.tally.answers.entry(should.label(kind)).or_default() += 1;
            if told.answer != should {
                let told = told.answer;
                return Err(format!(
                    "request {n}, {sent:?} by {deadline} at {place:?}: {told:?}; it should be {should:?}"
                ));
            }
            passed_at = passed_at.max(boundary(&told.answer));
            // A charge of 0 without a key is answered, but not logged.
            let nothing = matches!(&sent.request, Request::ChargeWallet { amount: 0, .. })
                && sent.key.is_none();
            if let Some((fact, raw)) = self.note(sent, told, place.now)?.filter(|_| !nothing) {
                if let Fact::OrderPlaced(placed) = &fact {
                    self.tally.most_lines = self.tally.most_lines.max(placed.lines.len());
                }
                facts.push(fact);
                raw_facts.push(raw);
            }
        }
        if !facts.is_empty() || passed_at > self.clock_ms {
            self.clock_ms = place.now;
        }
        self.check_log(&place, facts, raw_facts).await?;
        self.check_place(&place)?;
        State::compare_meta(
            &State::read_meta(&self.bench.client, &self.keys).await?,
            &self.expected_meta(),
        )?;
        Ok(again)
    }

    /// The expected answer: the model's verdict, or what is outside the model (deadlines, epochs,
    /// and orders that do not exist).
    fn expect(&mut self, sent: &Sent, deadline: i64, place: &CellState) -> ScriptAnswer {
        if deadline < place.time {
            return ScriptAnswer::Late;
        }
        let stored = sent.key.as_ref().and_then(|key| self.shop.records.get(&key.scope));
        let repeats =
            stored.is_some_and(|record| place.now < record.decided_at + IDEMPOTENCY_KEPT_MS);
        let spent = sent.key.as_ref().is_some_and(|key| self.shop.has_spent_keys(key, place.now));
        if !(repeats || spent)
            && let Some(why) = self.refused_by_the_read(sent)
        {
            return ScriptAnswer::Decided(Verdict::Refused(Refusal::Cancel(why)));
        }
        ScriptAnswer::Decided(self.shop.decide(&sent.request, sent.key.as_ref(), place.now))
    }

    /// A cancellation is refused if what PostgreSQL had of the order is out of date, or made up.
    fn refused_by_the_read(&self, sent: &Sent) -> Option<CancelRefusal> {
        let Request::CancelOrder { order_id } = &sent.request else { return None };
        let Body::Cancel(_, _, lines, _, _, _, read_in, was_pending, _) = &sent.body else {
            return None;
        };
        if *read_in != self.keys.epoch {
            return Some(CancelRefusal::StaleRead);
        }
        let Some(order) = self.shop.orders.get(order_id) else {
            return Some(CancelRefusal::UnknownProduct(lines[0].0.clone()));
        };
        let differs = match order.status() {
            OrderStatus::Cancelled => false,
            status => *was_pending != (status == OrderStatus::Pending),
        };
        differs.then_some(CancelRefusal::NotPending)
    }

    /// Records what an accepted request leaves behind and returns its fact. A replay must return
    /// the same bytes.
    fn note(
        &mut self,
        sent: &Sent,
        told: Told,
        now: i64,
    ) -> Result<Option<(Fact, Vec<u8>)>, String> {
        match (told.answer, told.fact) {
            (ScriptAnswer::Decided(Verdict::Accepted(fact)), Some(raw)) => {
                if let Some(key) = &sent.key {
                    let record = (key.request_hash.0.clone(), now, raw.clone());
                    self.records.insert((day_of(now), key.scope.clone()), record);
                }
                if let Fact::OrderPlaced(placed) = &fact {
                    self.asking.placed.push(placed.order_id);
                }
                Ok(Some((fact, raw)))
            }
            (ScriptAnswer::Decided(Verdict::Replayed(_)), raw) => {
                let scope = sent.key.as_ref().map(|key| key.scope.clone()).unwrap_or_default();
                let decided_at =
                    self.shop.records.get(&scope).map_or(0, |record| record.decided_at);
                let first = self.records.get(&(day_of(decided_at), scope)).map(|(_, _, raw)| raw);
                if first == raw.as_ref() {
                    Ok(None)
                } else {
                    Err(format!("repeated with other bytes: {raw:02x?}"))
                }
            }
            _ => Ok(None),
        }
    }

    /// Checks that a batch with changes wrote exactly one entry, with all its facts in order and a
    /// correct tip, and that any other batch wrote none.
    async fn check_log(
        &mut self,
        place: &CellState,
        facts: Vec<Fact>,
        raw: Vec<Vec<u8>>,
    ) -> Result<(), String> {
        let reader = &self.bench.reader;
        let added =
            reader.after(self.keys.epoch, self.seq(), 10).await.map_err(|e| e.to_string())?;
        if added.len() != usize::from(!facts.is_empty()) {
            return Err(format!("{} facts in {} entries", facts.len(), added.len()));
        }
        for entry in added {
            let last = self.tips.last().cloned().unwrap_or_default();
            if (entry.epoch, entry.seq) != (self.keys.epoch, self.seq() + 1)
                || !entry.follows(&last)
            {
                return Err(format!("entry {}-{} does not follow", entry.epoch, entry.seq));
            }
            let decoded = entry.decode().map_err(|e| e.to_string())?;
            let format = facts.iter().map(format_of).max().unwrap_or_default();
            let is =
                (decoded.version, decoded.decided_at, facts_of(decoded.facts), &decoded.raw_facts);
            if is != (format, place.now, facts.clone(), &raw) {
                return Err(format!(
                    "the entry says {is:?}; at {} was accepted, in format {format}, {facts:?}",
                    place.now
                ));
            }
            self.format = self.format.max(format);
            self.tips.push(entry.tip);
        }
        Ok(())
    }

    fn expected_meta(&self) -> BTreeMap<String, String> {
        let fields = [
            ("epoch", self.keys.epoch.to_string()),
            ("claim", self.keys.epoch.to_string()),
            ("seq", self.seq().to_string()),
            ("tip", self.tips.last().cloned().unwrap_or_default()),
            ("applied", "0".to_owned()),
            ("clock", self.clock_ms.to_string()),
            ("templates", self.shop.numbers.to_string()),
            ("limits", self.shop.limits.to_string()),
            ("state", self.state().to_owned()),
        ];
        fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    fn expected_state(&self) -> State {
        State::of_shop(&self.shop, &self.keys, self.expected_meta(), self.records.clone())
    }
}

/// The reason for which a whole batch must be refused.
fn refusal_of(claim: Claim) -> Option<&'static str> {
    match claim {
        Claim::Last | Claim::Earlier(_) | Claim::None => None,
        Claim::OtherEpoch => Some("epoch"),
        Claim::OtherDay => Some("day"),
        Claim::Later | Claim::Other(_) => Some("behind"),
        Claim::Backlog => Some("backlog"),
        Claim::Closed => Some("closed"),
    }
}

/// The moment whose passing a refusal depends on. The gate remembers its time even if it changes
/// nothing else.
fn boundary(answer: &ScriptAnswer) -> i64 {
    match answer {
        ScriptAnswer::Decided(Verdict::Refused(Refusal::Issue(IssueRefusal::ClosedSince(at)))) => {
            *at
        }
        ScriptAnswer::Decided(Verdict::Refused(Refusal::Order(
            OrderRefusal::CouponExpired(at) | OrderRefusal::SaleEnded(_, at),
        ))) => *at,
        ScriptAnswer::Decided(Verdict::Refused(Refusal::Confirm(ConfirmRefusal::HoldExpired(
            at,
        )))) => *at,
        _ => 0,
    }
}

fn packed(value: &impl serde::Serialize) -> Result<Vec<u8>, String> {
    wire::pack(value).map_err(|e| e.to_string())
}
