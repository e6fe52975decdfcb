//! What the relay declares in RabbitMQ, at start and after each reconnect.
//!
//! ```text
//! rushgate.events (topic) ─ order.completed, order.cancelled → data-platform.orders (quorum)
//!     ─ rejected, or delivered too often
//!       → rushgate.dead-letters (topic) ─ # → data-platform.orders.dead (quorum)
//! ```
//! Dead-lettering uses RabbitMQ's default strategy, at-most-once. The other strategy can leave a
//! queue without a leader when nodes end abruptly (rabbitmq-server issue 16652): every event would
//! lose its delivery, to save a rejected one.

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, ExchangeKind};

use crate::config::bounds::RELAY_DELIVERY_LIMIT;
use crate::domain::event::{ORDER_CANCELLED, ORDER_COMPLETED, ORDER_EXPIRED};

/// The exchange that every event is published to.
pub const EVENTS_EXCHANGE: &str = "rushgate.events";
/// The data platform's queue.
pub const ORDERS_QUEUE: &str = "data-platform.orders";
/// The exchange for events that a consumer rejected or failed on too often.
pub const DEAD_LETTER_EXCHANGE: &str = "rushgate.dead-letters";
/// The queue in which those events wait for an operator.
pub const DEAD_ORDERS_QUEUE: &str = "data-platform.orders.dead";

pub(super) async fn declare(channel: &Channel) -> Result<(), lapin::Error> {
    for exchange in [EVENTS_EXCHANGE, DEAD_LETTER_EXCHANGE] {
        let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
        channel
            .exchange_declare(exchange.into(), ExchangeKind::Topic, durable, FieldTable::default())
            .await?;
    }
    for (queue, arguments) in
        [(DEAD_ORDERS_QUEUE, dead_queue_arguments()), (ORDERS_QUEUE, orders_queue_arguments())]
    {
        channel.queue_declare(queue.into(), QueueDeclareOptions::durable(), arguments).await?;
    }
    for (queue, exchange, routing_key) in [
        (DEAD_ORDERS_QUEUE, DEAD_LETTER_EXCHANGE, "#"),
        (ORDERS_QUEUE, EVENTS_EXCHANGE, ORDER_COMPLETED),
        (ORDERS_QUEUE, EVENTS_EXCHANGE, ORDER_CANCELLED),
        (ORDERS_QUEUE, EVENTS_EXCHANGE, ORDER_EXPIRED),
    ] {
        channel
            .queue_bind(
                queue.into(),
                exchange.into(),
                routing_key.into(),
                QueueBindOptions::default(),
                FieldTable::default(),
            )
            .await?;
    }
    Ok(())
}

fn dead_queue_arguments() -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), text("quorum"));
    arguments
}

fn orders_queue_arguments() -> FieldTable {
    let mut arguments = dead_queue_arguments();
    arguments.insert("x-dead-letter-exchange".into(), text(DEAD_LETTER_EXCHANGE));
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(RELAY_DELIVERY_LIMIT));
    arguments
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}
