-- The number of coupons issued from each template after the last entry that touched it.
UPDATE coupon_templates
SET issued = i.issued
FROM unnest($1::text[], $2::bigint[]) AS i (template_id, issued)
WHERE coupon_templates.template_id = i.template_id
