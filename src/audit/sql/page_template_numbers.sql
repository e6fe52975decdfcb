SELECT number::text AS id, to_json(template_id) AS shown
FROM (
    SELECT number, template_id FROM coupon_templates
    UNION
    SELECT number, template_id FROM coupon_terms
) AS numbers
WHERE number::text > $1 ORDER BY number::text LIMIT $2
