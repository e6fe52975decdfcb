SELECT template_id AS id, to_json(issued) AS shown
FROM coupon_templates WHERE template_id > $1 ORDER BY template_id LIMIT $2
