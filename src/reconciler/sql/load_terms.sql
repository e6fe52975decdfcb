-- The terms of templates whose terms have changed, except the present ones, in the order of time.
SELECT c.number, c.template_id, c.discount_type, c.discount_value, c.discount_max, c.min_subtotal
FROM coupon_terms AS c
JOIN coupon_templates AS t USING (template_id)
WHERE t.terms_number IS NOT NULL AND c.number <> t.terms_number
ORDER BY c.number
