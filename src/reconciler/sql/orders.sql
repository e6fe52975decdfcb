INSERT INTO orders (order_id, user_id, status, subtotal, discount, total, coupon_id, balance_after, ordered_at)
SELECT o.order_id, o.user_id, 'paid', o.subtotal, o.discount, o.total, o.coupon_id, o.balance_after,
    to_timestamp(o.at_ms / 1000.0::float8)
FROM unnest($1::uuid[], $2::text[], $3::bigint[], $4::bigint[], $5::bigint[], $6::uuid[], $7::bigint[], $8::bigint[])
    AS o (order_id, user_id, subtotal, discount, total, coupon_id, balance_after, at_ms)
