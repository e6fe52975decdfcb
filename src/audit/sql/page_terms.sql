SELECT c.number::text AS id,
       json_build_object(
           'discount_type', c.discount_type, 'discount_value', c.discount_value, 'discount_max', c.discount_max,
           'min_subtotal', c.min_subtotal) AS shown
FROM coupon_terms AS c
JOIN coupon_templates AS t USING (template_id)
WHERE t.terms_number IS NOT NULL AND c.number <> t.terms_number AND c.number > coalesce(nullif($1, '')::bigint, 0)
ORDER BY c.number LIMIT $2
