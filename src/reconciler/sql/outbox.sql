INSERT INTO outbox (event_id, routing_key, payload, created_at)
SELECT e.event_id, e.routing_key, e.payload, to_timestamp(e.at_ms / 1000.0::float8)
FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[])
    WITH ORDINALITY AS e (event_id, routing_key, payload, at_ms, place)
ORDER BY e.place
