//! Wallets: the balance, charges, and the ledger.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::Api;
use super::answer::{AcceptedCharge, JsonAnswer, List};
use super::auth::{Caller, Charger};
use super::extract::{EntryId, IdempotencyKeyParam, Json, Key, NoQuery, Page, PageParams, PathId};
use super::fields::{IntRange, ShopId, bound};
use super::problem::Problem;
use super::refusals;
use crate::domain::fact::WalletCharged;
use crate::domain::limits::MAX_BALANCE;
use crate::domain::{UserId, rfc3339};
use crate::gate::ChargeWallet;
use crate::truth::LedgerEntry;

/// A wallet. Balance in won.
#[derive(Debug, Serialize, ToSchema)]
#[schema(title = "Wallet", as = Wallet)]
pub struct WalletView {
    #[schema(value_type = ShopId, example = "user-1")]
    user_id: UserId,
    #[schema(minimum = 0, maximum = 1_000_000, example = 100_000)]
    balance: u64,
}

/// How much to add to a wallet, in won.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(title = "Charge", as = ChargeWallet, example = json!({"amount": 50_000}))]
pub struct ChargeBody {
    #[schema(inline)]
    amount: IntRange<0, { bound(MAX_BALANCE) }>,
}

/// A charge. Amounts in won.
#[derive(Debug, Serialize, ToSchema)]
#[schema(title = "Charge", as = Charge)]
pub struct ChargeView {
    charge_id: Uuid,
    #[schema(value_type = ShopId, example = "user-1")]
    user_id: String,
    #[schema(minimum = 0, maximum = 1_000_000, example = 50_000)]
    amount: u64,
    /// The balance after it.
    #[schema(minimum = 0, maximum = 1_000_000, example = 150_000)]
    balance: u64,
    #[schema(format = DateTime, example = "2026-11-22T09:00:00.000Z")]
    charged_at: String,
}

impl From<WalletCharged> for ChargeView {
    fn from(charged: WalletCharged) -> Self {
        Self {
            charge_id: charged.charge_id.0,
            user_id: charged.user_id,
            amount: charged.amount,
            balance: charged.balance_after,
            charged_at: rfc3339(charged.charged_at),
        }
    }
}

/// One entry of a wallet's ledger.
#[derive(Debug, Serialize, ToSchema)]
#[schema(title = "WalletEntry", as = WalletEntry)]
pub struct WalletEntryView {
    #[schema(value_type = EntryKind)]
    kind: String,
    /// Signed: charges and refunds add, payments take.
    #[schema(example = -69_000)]
    amount: i64,
    /// The balance after it.
    #[schema(minimum = 0, maximum = 1_000_000, example = 31_000)]
    balance: u64,
    /// The charge, or the order that was paid or refunded.
    ref_id: Uuid,
    #[schema(format = DateTime, example = "2026-11-22T09:00:00.000Z")]
    at: String,
}

/// What changed the balance. PostgreSQL holds no other words.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
#[expect(dead_code, reason = "read by the derive, for the OpenAPI description")]
enum EntryKind {
    Charge,
    Payment,
    Refund,
}

impl From<LedgerEntry> for WalletEntryView {
    fn from(entry: LedgerEntry) -> Self {
        Self {
            kind: entry.kind,
            amount: entry.amount,
            balance: entry.balance_after,
            ref_id: entry.ref_id,
            at: rfc3339(entry.at),
        }
    }
}

/// A user's balance
///
/// A user who was never seen has balance 0.
#[utoipa::path(get, path = "/v1/users/{user}/wallet", tag = "wallets", params(("user" = ShopId, Path)),
    security(("token" = ["shop", "service", "admin"])), responses((status = 200, body = WalletView)))]
pub async fn get_wallet(
    State(api): State<Arc<Api>>,
    caller: Caller,
    PathId(user_id): PathId<UserId>,
    _: NoQuery,
) -> Result<JsonAnswer<WalletView>, Problem> {
    caller.check_acts_for(&user_id)?;
    let _permit = api.concurrency.read.permit().await?;
    let balance = api.gate.balance(&user_id).await?.unwrap_or(0);
    Ok(JsonAnswer(WalletView { user_id, balance }))
}

/// Charge a wallet
///
/// Needs the scope `service`, unless `RUSHGATE_CHARGE_SCOPE=shop` lets end users charge their own
/// wallets.
#[utoipa::path(post, path = "/v1/users/{user}/wallet/charges", tag = "wallets",
    params(("user" = ShopId, Path), IdempotencyKeyParam),
    request_body = ChargeBody, security(("token" = ["shop", "service", "admin"])),
    responses((status = 201, description = "Charged", body = ChargeView),
              (status = 202, description = "Decided, not yet in PostgreSQL", body = AcceptedCharge)))]
pub async fn charge_wallet(
    State(api): State<Arc<Api>>,
    Charger(caller): Charger,
    PathId(user_id): PathId<UserId>,
    key: Key,
    Json(body): Json<ChargeBody>,
) -> Result<Response, Problem> {
    caller.check_acts_for(&user_id)?;
    let amount = body.amount.get();
    let key = key.of(&user_id);
    let _permit = api.concurrency.decide.permit().await?;
    let decision =
        api.gate.charge_wallet(ChargeWallet { user_id, amount }, key, api.deadline()).await;
    let decided = api.decided(decision, |refusal| refusals::charge(&refusal, amount)).await?;
    let ids = |it: &WalletCharged| AcceptedCharge::new(it.charge_id.0);
    Ok(decided.answer(StatusCode::CREATED, ids, ChargeView::from))
}

/// A wallet's ledger, newest first
#[utoipa::path(get, path = "/v1/users/{user}/wallet/entries", tag = "wallets",
    params(("user" = ShopId, Path), PageParams), security(("token" = ["shop", "service", "admin"])),
    responses((status = 200, body = List<WalletEntryView>)))]
pub async fn list_entries(
    State(api): State<Arc<Api>>,
    caller: Caller,
    PathId(user_id): PathId<UserId>,
    page: Page<EntryId>,
) -> Result<JsonAnswer<List<WalletEntryView>>, Problem> {
    caller.check_acts_for(&user_id)?;
    let _permit = api.concurrency.truth.permit().await?;
    let after = page.after.map(|id| id.0);
    let read = async { Ok(api.truth.wallet_entries(&user_id, after, page.limit + 1).await?) };
    let (found, _) = api.read_truth(read).await?;
    let list = List::page(found, page.limit, |entry| entry.entry_id.to_string());
    Ok(JsonAnswer(list.map(WalletEntryView::from)))
}
