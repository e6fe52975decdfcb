-- In the order of decision: outbox_id follows it.
COPY outbox (event_id, routing_key, payload, created_at) FROM STDIN (FORMAT binary)
