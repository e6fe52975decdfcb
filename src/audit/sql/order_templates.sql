-- Each order with a coupon can be found by the coupon's template, and no other order can.
SELECT order_id::text AS id, coalesce(o.template_id, 'no template') AS expected, coalesce(t.template_id, 'no template') AS found
FROM order_templates AS t
FULL JOIN (
    SELECT orders.order_id, coupons.template_id FROM orders JOIN coupons USING (coupon_id)
) AS o USING (order_id)
WHERE o.template_id IS DISTINCT FROM t.template_id
