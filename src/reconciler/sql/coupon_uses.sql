-- The order that uses each coupon after the last entry that touched it; null: the coupon is
-- available again.
UPDATE coupons
SET order_id = u.order_id, used_at = to_timestamp(u.used_at_ms / 1000.0::float8)
FROM unnest($1::uuid[], $2::uuid[], $3::bigint[]) AS u (coupon_id, order_id, used_at_ms)
WHERE coupons.coupon_id = u.coupon_id
