-- Templates as the staff last put them. issued.sql writes the issued count, in the same
-- transaction. A new limit may be below the count that is stored from before, so limit and count
-- change together.
INSERT INTO coupon_templates (
    template_id, number, name, discount_type, discount_value, discount_max, min_subtotal, max_issued, issued,
    issue_from, issue_until, created_at, updated_at, terms_number
)
SELECT
    t.template_id, t.number, t.name, t.discount_type, t.discount_value, t.discount_max, t.min_subtotal, t.max_issued,
    t.issued, to_timestamp(t.issue_from_ms / 1000.0::float8), to_timestamp(t.issue_until_ms / 1000.0::float8),
    to_timestamp(t.at_ms / 1000.0::float8), to_timestamp(t.at_ms / 1000.0::float8), t.terms_number
FROM unnest(
    $1::text[], $2::bigint[], $3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[],
    $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[], $13::bigint[]
) AS t (
    template_id, number, name, discount_type, discount_value, discount_max, min_subtotal, max_issued, issued,
    issue_from_ms, issue_until_ms, at_ms, terms_number
)
ON CONFLICT (template_id) DO UPDATE
SET name = excluded.name,
    discount_type = excluded.discount_type,
    discount_value = excluded.discount_value,
    discount_max = excluded.discount_max,
    min_subtotal = excluded.min_subtotal,
    max_issued = excluded.max_issued,
    issued = excluded.issued,
    issue_from = excluded.issue_from,
    issue_until = excluded.issue_until,
    updated_at = excluded.updated_at,
    terms_number = excluded.terms_number
