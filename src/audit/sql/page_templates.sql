SELECT template_id AS id,
       json_build_object(
           'number', number, 'name', name, 'discount_type', discount_type, 'discount_value', discount_value,
           'discount_max', discount_max, 'min_subtotal', min_subtotal, 'max_issued', max_issued,
           'issue_from', (extract(epoch FROM issue_from) * 1000)::bigint,
           'issue_until', (extract(epoch FROM issue_until) * 1000)::bigint) AS shown
FROM coupon_templates WHERE template_id > $1 ORDER BY template_id LIMIT $2
