-- The first page has '' for an id.
SELECT coupon_id::text AS id,
       json_build_object(
           'template', template_id, 'user', user_id, 'serial', serial, 'order', order_id,
           'issued_at', (extract(epoch FROM issued_at) * 1000)::bigint) AS shown
FROM coupons
WHERE coupon_id > coalesce(nullif($1, '')::uuid, '00000000-0000-0000-0000-000000000000')
ORDER BY coupon_id LIMIT $2
