COPY coupons (coupon_id, template_id, user_id, serial, issued_at, expires_at, terms_number)
FROM STDIN WITH (FORMAT binary)
