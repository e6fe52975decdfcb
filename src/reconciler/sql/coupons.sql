INSERT INTO coupons (coupon_id, template_id, user_id, serial, issued_at, expires_at)
SELECT c.coupon_id, c.template_id, c.user_id, c.serial,
    to_timestamp(c.issued_at_ms / 1000.0::float8), to_timestamp(c.expires_at_ms / 1000.0::float8)
FROM unnest($1::uuid[], $2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::bigint[])
    AS c (coupon_id, template_id, user_id, serial, issued_at_ms, expires_at_ms)
