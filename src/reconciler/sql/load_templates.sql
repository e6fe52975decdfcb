SELECT template_id, number, name, discount_type, discount_value, discount_max, min_subtotal, max_issued, issued,
    (date_part('epoch', issue_from) * 1000)::bigint AS issue_from_ms,
    (date_part('epoch', issue_until) * 1000)::bigint AS issue_until_ms,
    terms_number,
    CASE WHEN terms_number IS NULL THEN 0 ELSE (
        SELECT count(*) FROM coupons AS c
        WHERE c.template_id = coupon_templates.template_id
            AND coalesce(c.terms_number, coupon_templates.number) <> coupon_templates.terms_number
    ) END AS issued_before
FROM coupon_templates
