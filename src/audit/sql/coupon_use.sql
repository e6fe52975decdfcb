-- A coupon is used by exactly the order that names it, and that order belongs to the coupon's
-- holder. A cancelled or expired order that gave its coupon back no longer uses it.
SELECT coupon_id::text AS id,
       coalesce('order ' || o.order_id || ' of ' || o.user_id, 'not used') AS expected,
       coalesce('order ' || c.order_id || ' of ' || c.user_id, 'not used') AS found
FROM (SELECT coupon_id, order_id, user_id FROM coupons WHERE order_id IS NOT NULL) c
FULL JOIN (
    SELECT coupon_id, order_id, user_id
    FROM orders
    WHERE coupon_id IS NOT NULL AND NOT (status IN ('cancelled', 'expired') AND coupon_returned)
) AS o USING (coupon_id)
WHERE c.order_id IS DISTINCT FROM o.order_id OR c.user_id IS DISTINCT FROM o.user_id
