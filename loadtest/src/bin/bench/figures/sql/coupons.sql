-- A template that has issued one coupon to each of the first wallets.
INSERT INTO coupon_templates (template_id, number, name, discount_type, discount_value, min_subtotal, max_issued,
                              issued, issue_from, issue_until, created_at, updated_at)
VALUES ('rush', 1, 'Template rush', 'amount', 500, 0, 1000000000, 0, '2020-01-01Z', '2100-01-01Z',
        date_trunc('milliseconds', now()), date_trunc('milliseconds', now()));

INSERT INTO coupons (coupon_id, template_id, user_id, serial, issued_at, expires_at)
SELECT gen_random_uuid(), 'rush', 'w' || lpad((i * 6180339887 % 10000000000)::text, 10, '0'), i,
       date_trunc('milliseconds', now()), date_trunc('milliseconds', now()) + interval '8760 hours'
FROM generate_series($1::bigint, $2::bigint) AS i;

UPDATE coupon_templates SET issued = (SELECT count(*) FROM coupons);
