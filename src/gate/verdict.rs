//! One request to a deciding script: packed, queued, and its verdict read as a typed decision.

use std::fmt;
use std::marker::PhantomData;
use std::time::Instant;

use opentelemetry::trace::SpanKind;
use serde::de::{DeserializeOwned, Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

use super::batcher::Batcher;
use super::refusal::{Accepted, Decision, GateError, Refusal};
use crate::config::bounds;
use crate::domain::fact::Idempotency;
use crate::domain::wire::{self, Id, Packed};
use crate::telemetry::trace::Trace;

/// The verdict on one request; `lua/shared/gate.lua` documents the codes.
pub(super) enum Verdict<'a, R> {
    Accepted {
        fact: Packed<'a>,
        replayed: bool,
    },
    Late,
    KeyReused,
    /// The user has made as many idempotency records as one may make today; milliseconds until
    /// tomorrow.
    KeysSpent(u64),
    Refused(R),
}

impl<'de: 'a, 'a, R: Deserialize<'de>> Deserialize<'de> for Verdict<'a, R> {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Parts<R>(PhantomData<R>);
        impl<'de, R: Deserialize<'de>> Visitor<'de> for Parts<R> {
            type Value = Verdict<'de, R>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a verdict")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Verdict<'de, R>, A::Error> {
                let missing = || A::Error::custom("a verdict without its details");
                let code: u8 = seq.next_element()?.ok_or_else(missing)?;
                Ok(match code {
                    0 | 1 => {
                        let fact = seq.next_element()?.ok_or_else(missing)?;
                        Verdict::Accepted { fact, replayed: code == 1 }
                    }
                    2 => Verdict::Late,
                    3 => Verdict::KeyReused,
                    4 => Verdict::Refused(seq.next_element()?.ok_or_else(missing)?),
                    6 => Verdict::KeysSpent(seq.next_element()?.ok_or_else(missing)?),
                    other => return Err(A::Error::custom(format!("unknown verdict {other}"))),
                })
            }
        }
        d.deserialize_seq(Parts(PhantomData))
    }
}

pub(super) fn pack(value: &impl Serialize) -> Result<Vec<u8>, GateError> {
    wire::pack(value).map_err(|e| GateError::Unavailable(format!("cannot pack a request: {e}")))
}

/// Sends one request through its script's queue.
pub(super) async fn decide<F: DeserializeOwned, R: DeserializeOwned + Refusal>(
    queue: &Batcher,
    body: &impl Serialize,
    key: Option<Idempotency>,
    deadline: Instant,
) -> Decision<F, R> {
    let decision = ask(queue, body, 1, key, None, deadline).await;
    queue.metrics.decided(&decision);
    decision
}

/// As [`decide`], for orders, which become events: the log keeps the request's trace beside the
/// decision on `id`.
pub(super) async fn decide_traced<F: DeserializeOwned, R: DeserializeOwned + Refusal>(
    queue: &Batcher,
    id: Id,
    body: &impl Serialize,
    lines: usize,
    key: Option<Idempotency>,
    deadline: Instant,
) -> Decision<F, R> {
    let (began, trace) = (Instant::now(), Trace::current());
    let mark = trace.as_ref().map(|trace| pack(&trace.mark.packed(id))).transpose()?;
    let decision = ask(queue, body, lines, key, mark, deadline).await;
    queue.metrics.decided(&decision);
    if let Some(trace) = trace {
        trace.mark.child(SpanKind::Client, queue.script.name, began.elapsed());
    }
    decision
}

/// Repeats a request that is refused as late before its deadline: the gate's clock was set forward
/// meanwhile.
async fn ask<F: DeserializeOwned, R: DeserializeOwned>(
    queue: &Batcher,
    body: &impl Serialize,
    lines: usize,
    key: Option<Idempotency>,
    trace: Option<Vec<u8>>,
    deadline: Instant,
) -> Decision<F, R> {
    let unreadable = |e: rmp_serde::decode::Error| {
        tracing::error!(error = %e, "a verdict cannot be read");
        GateError::OutcomeUnknown
    };
    let scope = |replayed: bool| key.as_ref().filter(|_| replayed).map(|key| key.scope.clone());
    for _ in 0..bounds::GATE_REPEATS {
        let packed_key = key.as_ref().map(pack).transpose()?;
        let (verdict, position) =
            queue.ask(deadline, packed_key, pack(body)?, trace.clone(), lines).await?;
        return match rmp_serde::from_slice::<Verdict<'_, R>>(&verdict).map_err(unreadable)? {
            Verdict::Accepted { fact, replayed } => {
                let fact = rmp_serde::from_slice(fact.0).map_err(unreadable)?;
                Ok(Ok(Accepted { fact, replayed, scope: scope(replayed), position }))
            }
            Verdict::Refused(refusal) => Ok(Err(refusal)),
            Verdict::KeyReused => Err(GateError::IdempotencyKeyReused),
            Verdict::KeysSpent(ms) => {
                Err(GateError::KeysSpent { retry_after_secs: ms.div_ceil(1_000) })
            }
            Verdict::Late if Instant::now() < deadline => continue,
            Verdict::Late => Err(GateError::Overloaded),
        };
    }
    Err(GateError::Overloaded)
}
