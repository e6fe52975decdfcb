-- Each coupon with its holder and its template's number, as the index of held coupons has it.
SELECT c.coupon_id::text AS id, c.user_id, coalesce(t.number, 0) AS number
FROM coupons c
LEFT JOIN coupon_templates t USING (template_id)
WHERE c.coupon_id > coalesce(nullif($1, '')::uuid, '00000000-0000-0000-0000-000000000000')
ORDER BY c.coupon_id LIMIT $2
