SELECT c.coupon_id::text AS id, c.user_id, coalesce(t.number, 0) AS number
FROM coupons c
LEFT JOIN coupon_templates t USING (template_id)
WHERE c.coupon_id = ANY ($1::text[]::uuid[])
