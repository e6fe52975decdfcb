SELECT template_id, number, name, discount_type, discount_value, discount_max, min_subtotal, max_issued, issued,
    (date_part('epoch', issue_from) * 1000)::bigint AS issue_from_ms,
    (date_part('epoch', issue_until) * 1000)::bigint AS issue_until_ms
FROM coupon_templates
