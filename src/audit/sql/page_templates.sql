SELECT template_id AS id,
       json_build_object(
           'number', number, 'name', name, 'discount_type', discount_type, 'discount_value', discount_value,
           'discount_max', discount_max, 'min_subtotal', min_subtotal, 'max_issued', max_issued,
           'issue_from', (extract(epoch FROM issue_from) * 1000)::bigint,
           'issue_until', (extract(epoch FROM issue_until) * 1000)::bigint,
           'terms_number', terms_number,
           'issued_before', CASE WHEN terms_number IS NULL THEN 0 ELSE (
               SELECT count(*) FROM coupons AS c
               WHERE c.template_id = t.template_id AND coalesce(c.terms_number, t.number) <> t.terms_number
           ) END,
           'earlier', CASE WHEN terms_number IS NULL THEN '' ELSE coalesce((
               SELECT string_agg(lpad(to_hex(c.number), 8, '0'), '' ORDER BY c.number) FROM coupon_terms AS c
               WHERE c.template_id = t.template_id AND c.number <> t.terms_number
           ), '') END) AS shown
FROM coupon_templates AS t WHERE template_id > $1 ORDER BY template_id LIMIT $2
