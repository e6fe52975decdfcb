INSERT INTO stock_adjustments (product_id, delta, stock_after, reason, adjusted_at)
SELECT s.product_id, s.delta, s.stock_after, s.reason, to_timestamp(s.at_ms / 1000.0::float8)
FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::text[], $5::bigint[])
    WITH ORDINALITY AS s (product_id, delta, stock_after, reason, at_ms, place)
ORDER BY s.place
