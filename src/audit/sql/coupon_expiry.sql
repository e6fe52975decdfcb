-- Each coupon is usable for 365 days of 24 hours.
SELECT coupon_id::text AS id,
       (issued_at + interval '8760 hours')::text AS expected,
       expires_at::text AS found
FROM coupons
WHERE expires_at <> issued_at + interval '8760 hours'
