//! The Lua scripts. Only this module includes the sources of `lua/`; Redis gets them with
//! `SCRIPT LOAD` and runs them by hash.
//!
//! [`Script`] is a script that decides or reads a batch, and [`Reply`] its answer.
//! [`ControlScript`] is one of the small scripts for the reconciler, for operators' commands and
//! for probes.

use bytes::Bytes;
use fred::interfaces::{ClientLike, LuaInterface};
use fred::prelude::*;
use serde::Deserialize;
use std::sync::OnceLock;

use crate::config::bounds::GATE_REPEATS;
use crate::domain::wire::Packed;
use crate::redis::connect::once;
use crate::redis::control::sha1_hex;
use crate::redis::keys::Keys;

/// One script that decides or reads a batch.
pub struct Script {
    pub name: &'static str,
    /// In `lua/`, without their ending, in the order in which they are joined.
    pub files: &'static [&'static str],
    source: &'static str,
    /// The script's own keys, after the shared ones, in the order of the script's header.
    own_keys: fn(&Keys) -> Vec<String>,
    /// Whether the script decides: the four keys of `gate.lua` come first, and each request carries
    /// a deadline and an idempotency key.
    pub decides: bool,
    hash: OnceLock<String>,
}

macro_rules! script {
    ($name:literal, $decides:literal, $keys:expr, $mark:literal, $($file:literal),+) => {
        Script {
            name: $name,
            files: &[$($file),+],
            source: concat!($mark, $(include_str!(concat!("../../lua/", $file, ".lua"))),+),
            own_keys: $keys,
            decides: $decides,
            hash: OnceLock::new(),
        }
    };
}

macro_rules! deciding {
    ($name:literal, $keys:expr $(, $more:literal)*) => {
        script!(
            $name,
            true,
            $keys,
            "#!lua\n",
            "shared/still_holds",
            "shared/cell",
            "shared/fetch",
            "shared/msgpack",
            "shared/coupons",
            "shared/batch",
            "shared/purchases",
            "shared/pending",
            "shared/gate",
            $($more,)*
            $name
        )
    };
}

pub static ISSUE_COUPON: Script =
    deciding!("issue_coupon", |k| vec![k.templates(), k.issued(), k.held()]);
pub static CHARGE_WALLET: Script =
    deciding!("charge_wallet", |k| vec![k.wallets(), k.pending_users()]);
pub static PLACE_ORDER: Script = deciding!("place_order", |k| {
    vec![
        k.wallets(),
        k.products(),
        k.stocks(),
        k.held(),
        k.template_numbers(),
        k.templates(),
        k.terms(),
        k.purchases(),
        k.pending(),
        k.pending_due(),
        k.pending_users(),
    ]
});
pub static CANCEL_ORDER: Script = deciding!(
    "cancel_order",
    |k| {
        let more = [k.cancelled(), k.pending(), k.pending_due()];
        giving_back(k).into_iter().chain(more).collect()
    },
    "shared/give_back"
);
pub static CONFIRM_ORDER: Script = deciding!("confirm_order", |k| {
    vec![k.wallets(), k.pending(), k.pending_due(), k.pending_users()]
});
pub static EXPIRE_ORDER: Script = deciding!(
    "expire_order",
    |k| giving_back(k).into_iter().chain([k.pending(), k.pending_due()]).collect(),
    "shared/give_back"
);
pub static PUT_PRODUCT: Script = deciding!("put_product", |k| {
    vec![k.products(), k.stocks(), k.product_ids(), k.attributes()]
});
pub static ADJUST_STOCK: Script = deciding!("adjust_stock", |k| vec![k.stocks()]);
pub static PUT_TEMPLATE: Script = deciding!("put_template", |k| vec![
    k.templates(),
    k.issued(),
    k.template_ids(),
    k.template_numbers(),
    k.terms()
]);
pub static READ: Script = script!(
    "read",
    false,
    |k| {
        vec![
            k.log(),
            k.wallets(),
            k.products(),
            k.stocks(),
            k.product_ids(),
            k.templates(),
            k.issued(),
            k.template_ids(),
            k.held(),
            k.template_numbers(),
            k.terms(),
            k.attributes(),
            k.purchases(),
            k.pending_users(),
            k.pending(),
            k.pending_due(),
        ]
    },
    "#!lua flags=no-writes\n",
    "shared/still_holds",
    "shared/cell",
    "shared/fetch",
    "shared/coupons",
    "read"
);

/// The keys of `lua/shared/give_back.lua`.
fn giving_back(k: &Keys) -> Vec<String> {
    vec![k.wallets(), k.stocks(), k.held(), k.purchases(), k.pending_users()]
}

/// The answer of a script to a whole batch.
#[derive(Debug)]
pub enum Reply {
    /// The batch was refused as a whole, without any change.
    Refused(Refused),
    Decided(Decided),
}

#[derive(Debug, Deserialize)]
pub struct Refused {
    pub why: String,
    pub place: CellState,
}

/// The end of a cell's log, the watermark, and the clocks in milliseconds.
#[derive(Clone, Debug, Deserialize)]
pub struct CellState {
    pub epoch: u64,
    pub seq: u64,
    pub tip: String,
    pub applied: u64,
    /// The gate's clock, which never runs backwards. Facts are dated by it.
    pub now: i64,
    /// The server's clock. Deadlines are compared with it.
    pub time: i64,
}

#[derive(Debug)]
pub struct Decided {
    /// One per request, in order. Each is a slice of the script's answer.
    pub verdicts: Vec<Bytes>,
    pub place: CellState,
}

impl Reply {
    /// Parses the answer that the headers of `lua/shared/gate.lua` and `lua/read.lua` describe.
    pub fn parse(answer: &Bytes) -> Result<Self, rmp_serde::decode::Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "snake_case")]
        enum Form<'a> {
            Refused(Refused),
            #[serde(borrow)]
            Decided((Vec<Packed<'a>>, CellState)),
        }
        Ok(match rmp_serde::from_slice(answer)? {
            Form::Refused(refused) => Self::Refused(refused),
            Form::Decided((verdicts, place)) => {
                let verdicts =
                    verdicts.into_iter().map(|Packed(verdict)| answer.slice_ref(verdict)).collect();
                Self::Decided(Decided { verdicts, place })
            }
        })
    }
}

/// A call without a valid reply.
#[derive(Debug)]
pub enum CallError {
    /// The script did not run, so nothing has changed: Redis refused the command (out of memory,
    /// loading, read-only) or there was no connection.
    NotRun(String),
    /// The script may have run: there was no answer, or an unreadable one.
    Unknown(String),
    /// The script failed while running. Redis does not roll back its earlier writes.
    ScriptFailed(String),
}

impl Script {
    pub fn source(&self) -> &'static str {
        self.source
    }

    /// The same script with another source, for tests that plant a defect and expect it to be
    /// found.
    pub fn with_source(&self, source: &'static str) -> Self {
        let Self { name, files, own_keys, decides, .. } = *self;
        Self { name, files, source, own_keys, decides, hash: OnceLock::new() }
    }

    fn hash(&self) -> &str {
        self.hash.get_or_init(|| sha1_hex(self.source))
    }

    /// `Some` if this verdict (or read answer) postpones its request, because the call would have
    /// taken too long. The value is the bytes of the user's coupons that made it expensive: 1 for
    /// reads, whose answer has no number; 0 if the script did not examine the request.
    pub fn to_ask_again(&self, verdict: &[u8]) -> Option<usize> {
        match verdict {
            [0xc1] if !self.decides => Some(1),
            [0x92, 5, bytes @ ..] if self.decides => {
                rmp::decode::read_int(&mut &bytes[..]).ok().or(Some(0)) // always a number
            }
            _ => None,
        }
    }

    pub fn keys(&self, keys: &Keys, today: i64) -> Vec<String> {
        let mut all = vec![Keys::meta(keys.cell)];
        if self.decides {
            all.extend([keys.log(), keys.idempotency(today), keys.idempotency(today - 1)]);
        }
        all.extend((self.own_keys)(keys));
        all
    }

    /// See [`Script::call_traced`].
    pub async fn call(
        &self,
        client: &Client,
        keys: Vec<String>,
        head: Vec<u8>,
        batch: Vec<u8>,
    ) -> Result<Reply, CallError> {
        self.call_traced(client, keys, head, batch, None).await
    }

    /// Runs the script once. If Redis does not know it (`NOSCRIPT`, so it has not run), loads it
    /// first.
    pub async fn call_traced(
        &self,
        client: &Client,
        keys: Vec<String>,
        head: Vec<u8>,
        batch: Vec<u8>,
        traces: Option<Vec<u8>>,
    ) -> Result<Reply, CallError> {
        if !client.is_connected() {
            return Err(CallError::NotRun("not connected".into()));
        }
        let parts = [Some(head), Some(batch), traces];
        let args: Vec<Value> =
            parts.into_iter().flatten().map(|part| Value::Bytes(part.into())).collect();
        let mut outcome = self.evaluate(client, keys.clone(), args.clone()).await;
        // More than once: the scripts may be flushed between the load and the call.
        for _ in 0..GATE_REPEATS {
            if !matches!(&outcome, Err(e) if e.details().starts_with("NOSCRIPT")) {
                break;
            }
            let _: () = client
                .with_options(&once())
                .script_load_cluster(self.source)
                .await
                .map_err(|e| CallError::NotRun(e.to_string()))?;
            outcome = self.evaluate(client, keys.clone(), args.clone()).await;
        }
        let bytes = outcome.map_err(classify)?;
        Reply::parse(&bytes)
            .map_err(|e| CallError::Unknown(format!("{}: unreadable answer: {e}", self.name)))
    }

    async fn evaluate(
        &self,
        client: &Client,
        keys: Vec<String>,
        args: Vec<Value>,
    ) -> Result<Bytes, Error> {
        client.with_options(&once()).evalsha(self.hash(), keys, args).await
    }
}

/// Prefixes of the errors that Redis returns before it runs a script.
const NOT_RUN: [&str; 10] = [
    "NOSCRIPT",
    "OOM",
    "MISCONF",
    "LOADING",
    "READONLY",
    "MASTERDOWN",
    "NOREPLICAS",
    "CLUSTERDOWN",
    "NOAUTH",
    "NOPERM",
];

fn classify(error: Error) -> CallError {
    let text = error.details().to_owned();
    // A running script may fail with such a prefix from one of its commands. Redis then adds the
    // script to the message.
    let inside = text.contains("script: ") || text.contains("user_script");
    let server_answered = matches!(
        error.kind(),
        ErrorKind::Unknown
            | ErrorKind::InvalidArgument
            | ErrorKind::Auth
            | ErrorKind::Cluster
            | ErrorKind::InvalidCommand
    );
    if inside {
        CallError::ScriptFailed(text)
    } else if NOT_RUN.iter().any(|prefix| text.starts_with(prefix)) || text.starts_with("BUSY ") {
        CallError::NotRun(text)
    } else if server_answered && text.starts_with("ERR") || text.starts_with("WRONGTYPE") {
        CallError::ScriptFailed(text)
    } else {
        CallError::Unknown(text)
    }
}
