//! Publishes a window of events and determines the outcome of each.

use futures::future::Either;
use lapin::options::BasicPublishOptions;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, PublisherConfirm};
use opentelemetry::trace::SpanKind;
use serde::Deserialize;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::task::Poll;
use std::time::Duration;
use tokio::time::{Instant, timeout, timeout_at};

use super::broker::BrokerError;
use super::outbox::OutboxRow;
use super::topology::EVENTS_EXCHANGE;
use crate::config::bounds::{RELAY_CONFIRM_TIMEOUT, RELAY_PUBLISH_TIMEOUT};
use crate::domain::event::{CLOUD_EVENTS_JSON, event_type};
use crate::domain::trace_mark::TraceMark;
use crate::telemetry::trace::{REQUEST_ID, TRACEPARENT, is_exporting};

/// AMQP's delivery mode of a message that survives a restart of the broker.
const PERSISTENT: u8 = 2;

/// An event that the broker did not accept, and the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub outbox_id: i64,
    pub event_id: String,
    pub why: Refusal,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No queue is bound for its routing key.
    Unroutable(String),
    /// The broker could not store it.
    Nacked,
    /// It cannot be encoded as an AMQP message.
    Unpublishable(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unroutable(why) => write!(f, "no queue is bound for it ({why})"),
            Self::Nacked => f.write_str("RabbitMQ could not store it"),
            Self::Unpublishable(why) => {
                write!(f, "it cannot be encoded as an AMQP message ({why})")
            }
        }
    }
}

/// The outcomes of one step's events. An event in neither list has an unknown outcome: it stays in
/// the outbox and is sent again.
#[derive(Debug, Default)]
pub(super) struct Window {
    pub sent: usize,
    pub confirmed: Vec<i64>,
    pub refused: Vec<Refused>,
    /// How long it took to hand all events to lapin …
    pub publishing: Duration,
    /// … and how long it took from there to the last confirm.
    pub confirming: Duration,
    /// Set if the connection must not be used again.
    pub doubt: Option<BrokerError>,
}

/// Publishes `rows` in order, then awaits every confirm.
pub(super) async fn publish_window(channel: &Channel, rows: &[OutboxRow]) -> Window {
    let mut window = Window::default();
    let mut pending = Vec::with_capacity(rows.len());
    let started = Instant::now();
    let sent =
        timeout(RELAY_PUBLISH_TIMEOUT, send_all(channel, rows, &mut pending, &mut window.refused))
            .await;
    window.sent = pending.len();
    window.publishing = started.elapsed();
    window.doubt = match sent {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error.into()),
        Err(_) => {
            Some(BrokerError::TimedOut { what: "taking events", limit: RELAY_PUBLISH_TIMEOUT })
        }
    };
    // After a failure, only confirms that have already arrived count.
    let patience = if window.doubt.is_none() { RELAY_CONFIRM_TIMEOUT } else { Default::default() };
    let mut outcomes = Vec::with_capacity(pending.len());
    let published = Instant::now();
    let deadline = published + patience;
    for (row, confirm) in pending {
        let outcome = match timeout_at(deadline, confirm).await {
            Ok(Ok(confirmation)) => Some(confirmation),
            Ok(Err(error)) => {
                window.doubt.get_or_insert(error.into());
                None
            }
            Err(_) => {
                window.doubt.get_or_insert(BrokerError::Unconfirmed);
                None
            }
        };
        outcomes.push((row, outcome));
    }
    window.confirming = published.elapsed();
    judge(outcomes, &mut window);
    trace_delivery(rows, &window.confirmed, started.elapsed());
    window
}

fn trace_delivery(rows: &[OutboxRow], confirmed: &[i64], took: Duration) {
    if !is_exporting() {
        return;
    }
    let confirmed: HashSet<i64> = confirmed.iter().copied().collect();
    for row in rows.iter().filter(|row| confirmed.contains(&row.outbox_id)) {
        if let Some(trace) = Told::of(row).traceparent.and_then(|text| TraceMark::parse(&text)) {
            trace.child(SpanKind::Producer, format!("publish {}", row.routing_key), took);
        }
    }
}

/// Hands all events to lapin before it waits for the first to be written: lapin then writes them
/// together, instead of waking its thread and the broker for each. lapin numbers and queues a
/// message when its future is first polled, so the polls determine the order.
async fn send_all<'a>(
    channel: &Channel,
    rows: &'a [OutboxRow],
    pending: &mut Vec<(&'a OutboxRow, PublisherConfirm)>,
    refused: &mut Vec<Refused>,
) -> Result<(), lapin::Error> {
    let mut writing = Vec::with_capacity(rows.len());
    for row in rows {
        let (routing_key, properties) = match address(row) {
            Ok(address) => address,
            Err(problem) => {
                refused.push(row.refused(Refusal::Unpublishable(problem)));
                continue;
            }
        };
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let payload = row.payload.as_bytes();
        let mut sent = Box::pin(channel.basic_publish(
            EVENTS_EXCHANGE.into(),
            routing_key,
            options,
            payload,
            properties,
        ));
        match futures::poll!(sent.as_mut()) {
            Poll::Ready(outcome) => writing.push((row, Either::Left(std::future::ready(outcome)))),
            Poll::Pending => writing.push((row, Either::Right(sent))),
        }
    }
    for (row, sent) in writing {
        pending.push((row, sent.await?));
    }
    Ok(())
}

/// The trace context of the request that an event came from, as the event itself records it.
#[derive(Default, Deserialize)]
struct Told {
    traceparent: Option<String>,
    requestid: Option<String>,
}

impl Told {
    fn of(row: &OutboxRow) -> Self {
        serde_json::from_str(&row.payload).unwrap_or_default()
    }

    fn headers(self) -> FieldTable {
        let mut headers = FieldTable::default();
        for (name, value) in [(TRACEPARENT, self.traceparent), (REQUEST_ID, self.requestid)] {
            if let Some(value) = value {
                headers.insert(name.into(), AMQPValue::LongString(value.into()));
            }
        }
        headers
    }
}

fn address(row: &OutboxRow) -> Result<(ShortString, BasicProperties), String> {
    let short =
        |text: &str| ShortString::try_new(text.to_owned()).map_err(|error| error.to_string());
    let properties = BasicProperties::default()
        .with_content_type(CLOUD_EVENTS_JSON.into())
        .with_delivery_mode(PERSISTENT)
        .with_message_id(short(&row.event_id)?)
        .with_type(short(&event_type(&row.routing_key))?)
        .with_app_id("rushgate".into())
        .with_headers(Told::of(row).headers())
        .with_timestamp(u64::try_from(row.created_secs).unwrap_or_default());
    Ok((short(&row.routing_key)?, properties))
}

/// An event is delivered when its own confirm is a plain ack *and* it was not returned.
///
/// Both conditions are needed. lapin attaches a returned message to whichever confirm completes
/// next; when the broker acks several messages at once, that need not be the confirm of the
/// returned one. A return always comes before its message's ack. So once that ack is here, the
/// return is in one of the window's outcomes. An ack that carries the return of another message
/// proves nothing about its own event, which is sent again.
fn judge(outcomes: Vec<(&OutboxRow, Option<Confirmation>)>, window: &mut Window) {
    let mut returned: HashMap<String, String> = HashMap::new();
    for (_, outcome) in &outcomes {
        if let Some(Confirmation::Ack(Some(message)) | Confirmation::Nack(Some(message))) = outcome
            && let Some(event_id) = message.delivery.properties.message_id()
        {
            returned.insert(event_id.to_string(), message.reply_text.to_string());
        }
    }
    for (row, outcome) in outcomes {
        match (returned.get(&row.event_id), outcome) {
            (Some(reason), _) => {
                window.refused.push(row.refused(Refusal::Unroutable(reason.clone())))
            }
            (None, Some(Confirmation::Ack(None))) => window.confirmed.push(row.outbox_id),
            (None, Some(Confirmation::Nack(_))) => {
                window.refused.push(row.refused(Refusal::Nacked))
            }
            (None, Some(Confirmation::Ack(Some(_)) | Confirmation::NotRequested) | None) => {}
        }
    }
}

impl OutboxRow {
    fn refused(&self, why: Refusal) -> Refused {
        Refused { outbox_id: self.outbox_id, event_id: self.event_id.clone(), why }
    }
}
