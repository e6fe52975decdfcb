SELECT number::text AS id, to_json(template_id) AS shown
FROM coupon_templates WHERE number::text > $1 ORDER BY number::text LIMIT $2
