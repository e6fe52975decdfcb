-- Each coupon in the form of its holder's value in the gate. The first page has '' as the id.
SELECT c.coupon_id, c.user_id, coalesce(c.terms_number, t.number, 0)::bigint AS number, c.serial::bigint AS serial,
       (extract(epoch FROM c.issued_at) * 1000)::bigint AS issued_at_ms, c.order_id
FROM coupons c
LEFT JOIN coupon_templates t USING (template_id)
WHERE c.coupon_id > coalesce(nullif($1, '')::uuid, '00000000-0000-0000-0000-000000000000')
ORDER BY c.coupon_id LIMIT $2
