-- Coupons of a template in the order of their serials, from the index on (template_id, serial). No
-- index knows the status: a column that changes with each use would have to be in it, and then every
-- use of a coupon would write all indexes of its row anew (see migration 0002).
--
-- $1: template, $2: serials above this one, $3: up to this one, $4: status, or null for any,
-- $5: the time at which the status holds, $6: limit
SELECT
    coupon_id, user_id, serial,
    (extract(epoch FROM issued_at) * 1000)::bigint,
    (extract(epoch FROM expires_at) * 1000)::bigint,
    order_id
FROM coupons
WHERE template_id = $1 AND serial > $2 AND serial <= $3
  AND CASE $4::text
      WHEN 'used' THEN order_id IS NOT NULL
      WHEN 'available' THEN order_id IS NULL AND expires_at > to_timestamp($5::bigint / 1000.0::float8)
      WHEN 'expired' THEN order_id IS NULL AND expires_at <= to_timestamp($5::bigint / 1000.0::float8)
      ELSE true
      END
ORDER BY serial
LIMIT $6
