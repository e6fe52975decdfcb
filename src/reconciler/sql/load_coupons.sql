-- All coupons, grouped by user, oldest first.
SELECT c.coupon_id, coalesce(c.terms_number, t.number) AS terms_number, c.user_id, c.serial,
    (date_part('epoch', c.issued_at) * 1000)::bigint AS issued_at_ms, c.order_id
FROM coupons AS c
JOIN coupon_templates AS t USING (template_id)
ORDER BY c.user_id, c.issued_at, c.coupon_id
