//! The nine kinds of requests: their scripts, and the wire format of their bodies and verdicts.

use rushgate::domain::fact::{OrderCancelled, TemplateTerms};
use rushgate::domain::wire::{Blob, Id};
use rushgate::domain::{OrderStatus, ProductStatus};
use rushgate::gate::script::{self, Script};
use serde::de::DeserializeOwned;
use serde::ser::SerializeSeq;
use serde::{Serialize, Serializer};

use crate::history::model::{Fact, Order, Refusal, Verdict};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    IssueCoupon,
    ChargeWallet,
    PlaceOrder,
    CancelOrder,
    ConfirmOrder,
    ExpireOrder,
    PutProduct,
    AdjustStock,
    PutTemplate,
}

pub const KINDS: [Kind; 9] = [
    Kind::IssueCoupon,
    Kind::ChargeWallet,
    Kind::PlaceOrder,
    Kind::CancelOrder,
    Kind::ConfirmOrder,
    Kind::ExpireOrder,
    Kind::PutProduct,
    Kind::AdjustStock,
    Kind::PutTemplate,
];

/// The scripts of a run: the service's own, or with a planted defect.
#[derive(Clone, Copy)]
pub struct Scripts {
    pub deciding: [&'static Script; 9],
    pub read: &'static Script,
    /// See [`crate::history::model::Shop::most_versions`].
    pub most_versions: Option<usize>,
}

impl Scripts {
    pub fn of_the_service() -> Self {
        Self {
            deciding: [
                &script::ISSUE_COUPON,
                &script::CHARGE_WALLET,
                &script::PLACE_ORDER,
                &script::CANCEL_ORDER,
                &script::CONFIRM_ORDER,
                &script::EXPIRE_ORDER,
                &script::PUT_PRODUCT,
                &script::ADJUST_STOCK,
                &script::PUT_TEMPLATE,
            ],
            read: &script::READ,
            most_versions: None,
        }
    }

    pub fn of(&self, kind: Kind) -> &'static Script {
        self.deciding[kind as usize]
    }
}

/// A request's body in the form that its script takes.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Body {
    Issue(String, String, Id),
    Charge(String, u64, Id),
    Place(
        Id,
        String,
        #[serde(serialize_with = "flat")] Vec<(String, u64)>,
        Option<Id>,
        Option<u64>,
        Option<More>,
    ),
    /// The last three: the epoch of the read, whether it was read as pending, won paid outside.
    Cancel(
        Id,
        String,
        #[serde(serialize_with = "flat")] Vec<(String, u64)>,
        u64,
        Option<Id>,
        Option<Vec<u64>>,
        u64,
        bool,
        Option<u64>,
    ),
    Confirm(Id, String),
    Expire(
        Id,
        String,
        #[serde(serialize_with = "flat")] Vec<(String, u64)>,
        u64,
        Option<Id>,
        Option<Vec<u64>>,
    ),
    PutProduct(String, String, u64, ProductStatus, Option<u64>, Option<Rules>),
    Adjust(String, i64, Option<String>, u64),
    PutTemplate(String, TemplateTerms),
}

/// Reference; and won to take from the wallet, ms of the hold, most pending orders of a user.
type More = (Option<String>, Option<(u64, u64, u64)>);
/// Start and end of the sale, limit per user, attributes.
type Rules = (Option<i64>, Option<i64>, Option<u64>, Option<String>);

/// The lines of an order as a flat list: product, quantity, product, …
fn flat<S: Serializer>(lines: &[(String, u64)], serializer: S) -> Result<S::Ok, S::Error> {
    let mut list = serializer.serialize_seq(Some(lines.len() * 2))?;
    for (product, quantity) in lines {
        list.serialize_element(product)?;
        list.serialize_element(quantity)?;
    }
    list.end()
}

/// The answer to a request, actual or expected.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "few are late, and none is kept")]
pub enum ScriptAnswer {
    /// The deadline had passed.
    Late,
    Decided(Verdict),
}

impl ScriptAnswer {
    /// The verdict's name, for counting; for a refusal, the reason's name.
    pub fn label(&self, kind: Kind) -> String {
        let what = match self {
            Self::Late => "late".to_owned(),
            Self::Decided(Verdict::Accepted(fact)) => accepted(fact).to_owned(),
            Self::Decided(Verdict::Replayed(_)) => "replayed".to_owned(),
            Self::Decided(Verdict::KeyReused) => "key reused".to_owned(),
            Self::Decided(Verdict::KeysSpent(_)) => "keys spent".to_owned(),
            Self::Decided(Verdict::Refused(why)) => {
                let shown = format!("{why:?}");
                let name = shown.split_once('(').map_or("", |(_, inner)| inner);
                name.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_owned()
            }
        };
        format!("{kind:?} {what}")
    }
}

/// What was accepted, where it makes a difference.
fn accepted(fact: &Fact) -> &'static str {
    match fact {
        Fact::OrderPlaced(f) if f.more.as_ref().is_some_and(|more| more.outside.is_some()) => {
            let pending = Order::new(f.clone()).status() == OrderStatus::Pending;
            if pending { "held" } else { "paid at once" }
        }
        Fact::OrderCancelled(OrderCancelled { more: Some(more), .. }) if more.was_pending => "held",
        Fact::OrderCancelled(OrderCancelled { more: Some(more), .. })
            if more.paid_outside.is_some_and(|won| won > 0) =>
        {
            "paid outside"
        }
        Fact::OrderExpired(f) if !f.counts.is_empty() => "counted",
        Fact::CouponIssued(f) if f.terms_number.is_some() => "later terms",
        _ => "accepted",
    }
}

/// A decoded answer with the fact's bytes. They must be identical in the answer, the log, the
/// record and every replay.
pub struct Told {
    pub answer: ScriptAnswer,
    pub fact: Option<Vec<u8>>,
}

impl Kind {
    /// A PUT is idempotent without a key, and the service itself ends holds.
    pub fn takes_keys(self) -> bool {
        !matches!(self, Self::PutProduct | Self::PutTemplate | Self::ExpireOrder)
    }

    /// The format of a verdict is described in `lua/shared/gate.lua`.
    pub fn told(self, packed: &[u8]) -> Result<Told, String> {
        let code = *packed.get(1).ok_or("an empty verdict")?;
        let verdict = match code {
            0 | 1 => {
                let (_, Blob(bytes)) = unpacked::<(u8, Blob)>(packed)?;
                let fact = self.fact(&bytes)?;
                let verdict =
                    if code == 0 { Verdict::Accepted(fact) } else { Verdict::Replayed(fact) };
                return Ok(Told { answer: ScriptAnswer::Decided(verdict), fact: Some(bytes) });
            }
            2 => return Ok(Told { answer: ScriptAnswer::Late, fact: None }),
            3 => Verdict::KeyReused,
            6 => Verdict::KeysSpent(unpacked::<(u8, i64)>(packed)?.1),
            4 => Verdict::Refused(self.refusal(packed)?),
            other => return Err(format!("a verdict with the code {other}")),
        };
        Ok(Told { answer: ScriptAnswer::Decided(verdict), fact: None })
    }

    fn fact(self, bytes: &[u8]) -> Result<Fact, String> {
        Ok(match self {
            Self::IssueCoupon => Fact::CouponIssued(unpacked(bytes)?),
            Self::ChargeWallet => Fact::WalletCharged(unpacked(bytes)?),
            Self::PlaceOrder => Fact::OrderPlaced(unpacked(bytes)?),
            Self::CancelOrder => Fact::OrderCancelled(unpacked(bytes)?),
            Self::ConfirmOrder => Fact::OrderConfirmed(unpacked(bytes)?),
            Self::ExpireOrder => Fact::OrderExpired(unpacked(bytes)?),
            Self::PutProduct => Fact::ProductPut(unpacked(bytes)?),
            Self::AdjustStock => Fact::StockAdjusted(unpacked(bytes)?),
            Self::PutTemplate => Fact::TemplatePut(unpacked(bytes)?),
        })
    }

    fn refusal(self, packed: &[u8]) -> Result<Refusal, String> {
        fn why<R: DeserializeOwned>(packed: &[u8]) -> Result<R, String> {
            unpacked::<(u8, R)>(packed).map(|(_, why)| why)
        }
        Ok(match self {
            Self::IssueCoupon => Refusal::Issue(why(packed)?),
            Self::ChargeWallet => Refusal::Charge(why(packed)?),
            Self::PlaceOrder => Refusal::Order(why(packed)?),
            Self::CancelOrder => Refusal::Cancel(why(packed)?),
            Self::ConfirmOrder => Refusal::Confirm(why(packed)?),
            Self::ExpireOrder => Refusal::Expire(why(packed)?),
            Self::PutProduct => Refusal::Product(why(packed)?),
            Self::AdjustStock => Refusal::Stock(why(packed)?),
            Self::PutTemplate => Refusal::Template(why(packed)?),
        })
    }
}

pub fn unpacked<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    rmp_serde::from_slice(bytes).map_err(|e| format!("unreadable: {e} in {bytes:02x?}"))
}
