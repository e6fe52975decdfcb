//! The events for the data platform: CloudEvents 1.0 in structured JSON, one for each completed,
//! each cancelled and each expired order.
//!
//! The reconciler stores an event in the outbox, in the transaction that applies the order. The
//! relay publishes it unchanged. An event's `id` is derived from the order's id, so a consumer can
//! recognise a repeated delivery.

use serde::Serialize;
use uuid::Uuid;

use super::{TimestampMs, rfc3339};
use crate::domain::trace_mark::TraceMark;

/// The routing key of a completed order.
pub const ORDER_COMPLETED: &str = "order.completed";
/// The routing key of a cancelled order.
pub const ORDER_CANCELLED: &str = "order.cancelled";
/// The routing key of an order whose hold has ended.
pub const ORDER_EXPIRED: &str = "order.expired";
/// The media type of an event's payload.
pub const CLOUD_EVENTS_JSON: &str = "application/cloudevents+json";

/// One row of the outbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboxEvent {
    /// The same in every delivery of the event.
    pub event_id: String,
    pub routing_key: &'static str,
    /// The complete CloudEvent.
    pub payload: String,
}

/// The CloudEvents `type` of a routing key.
pub fn event_type(routing_key: &str) -> String {
    format!("rushgate.{routing_key}.v1")
}

/// `order`: the order as `GET /v1/orders/{id}` returns it right after the payment.
pub fn order_completed(
    order_id: Uuid,
    ordered_at: TimestampMs,
    order: &impl Serialize,
    trace: Option<&TraceMark>,
) -> Result<OutboxEvent, serde_json::Error> {
    order_event(
        format!("{order_id}.completed"),
        ORDER_COMPLETED,
        order_id,
        ordered_at,
        order,
        trace,
    )
}

/// `order`: the order as `GET /v1/orders/{id}` returns it right after the cancellation.
pub fn order_cancelled(
    order_id: Uuid,
    cancelled_at: TimestampMs,
    order: &impl Serialize,
    trace: Option<&TraceMark>,
) -> Result<OutboxEvent, serde_json::Error> {
    order_event(
        format!("{order_id}.cancelled"),
        ORDER_CANCELLED,
        order_id,
        cancelled_at,
        order,
        trace,
    )
}

/// `order`: the order as `GET /v1/orders/{id}` returns it right after the end of its hold.
pub fn order_expired(
    order_id: Uuid,
    expired_at: TimestampMs,
    order: &impl Serialize,
) -> Result<OutboxEvent, serde_json::Error> {
    let event_id = format!("{order_id}.expired");
    order_event(event_id, ORDER_EXPIRED, order_id, expired_at, order, None)
}

fn order_event(
    event_id: String,
    routing_key: &'static str,
    order_id: Uuid,
    at: TimestampMs,
    order: &impl Serialize,
    trace: Option<&TraceMark>,
) -> Result<OutboxEvent, serde_json::Error> {
    #[derive(Serialize)]
    struct CloudEvent<'a, T> {
        specversion: &'static str,
        id: &'a str,
        source: &'static str,
        r#type: String,
        subject: Uuid,
        time: String,
        datacontenttype: &'static str,
        // CloudEvents' extension for distributed tracing, and an extension of Rushgate.
        #[serde(skip_serializing_if = "Option::is_none")]
        traceparent: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        requestid: Option<String>,
        data: &'a T,
    }
    let payload = serde_json::to_string(&CloudEvent {
        specversion: "1.0",
        id: &event_id,
        source: "rushgate",
        r#type: event_type(routing_key),
        subject: order_id,
        time: rfc3339(at),
        datacontenttype: "application/json",
        traceparent: trace.map(TraceMark::traceparent),
        requestid: trace.map(TraceMark::request_id),
        data: order,
    })?;
    Ok(OutboxEvent { event_id, routing_key, payload })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn an_event_is_a_cloud_event_whose_id_is_stable() {
        let order_id = Uuid::from_u128(7);
        let order = json!({"order_id": order_id, "total": 1_000});
        let event = order_completed(order_id, 1_700_000_000_123, &order, None).unwrap();
        assert_eq!(event.event_id, "00000000-0000-0000-0000-000000000007.completed");
        assert_eq!(event.routing_key, "order.completed");
        assert_eq!(
            serde_json::from_str::<Value>(&event.payload).unwrap(),
            json!({
                "specversion": "1.0",
                "id": "00000000-0000-0000-0000-000000000007.completed",
                "source": "rushgate",
                "type": "rushgate.order.completed.v1",
                "subject": "00000000-0000-0000-0000-000000000007",
                "time": "2023-11-14T22:13:20.123Z",
                "datacontenttype": "application/json",
                "data": order,
            })
        );
        assert_eq!(order_completed(order_id, 1_700_000_000_123, &order, None).unwrap(), event);
    }

    #[test]
    fn a_cancellation_is_an_event_of_its_own() {
        let event = order_cancelled(Uuid::from_u128(7), 0, &json!({}), None).unwrap();
        assert_eq!(event.event_id, "00000000-0000-0000-0000-000000000007.cancelled");
        assert_eq!(event.routing_key, "order.cancelled");
        assert!(event.payload.contains("\"type\":\"rushgate.order.cancelled.v1\""));
    }
}
