COPY outbox (event_id, routing_key, payload, created_at)
FROM STDIN WITH (FORMAT binary)
