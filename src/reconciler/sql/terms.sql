-- The terms of numbers that were put in this batch, and the present ones of templates ($7) that are
-- about to change: coupons were issued with them.
INSERT INTO coupon_terms (number, template_id, discount_type, discount_value, discount_max, min_subtotal)
SELECT coalesce(terms_number, number), template_id, discount_type, discount_value, discount_max, min_subtotal
FROM coupon_templates
WHERE template_id = ANY($7::text[]) AND coalesce(terms_number, number) <> ALL($1::bigint[])
UNION ALL
SELECT t.number, t.template_id, t.discount_type, t.discount_value, t.discount_max, t.min_subtotal
FROM unnest($1::bigint[], $2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::bigint[])
    AS t (number, template_id, discount_type, discount_value, discount_max, min_subtotal)
ON CONFLICT (number) DO UPDATE
SET discount_type = excluded.discount_type,
    discount_value = excluded.discount_value,
    discount_max = excluded.discount_max,
    min_subtotal = excluded.min_subtotal
