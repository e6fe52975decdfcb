-- Each template's count of issued coupons is right: one coupon per user, serials 1 … issued without
-- gaps, and never more than the limit. No coupon lacks a template.
SELECT template_id AS id,
       coalesce('serials 1 to ' || t.issued || ' of at most ' || t.max_issued, 'no template') AS expected,
       coalesce(c.coupons || ' coupons of ' || c.users || ' users, serials ' || c.first || ' to ' || c.last,
                'no coupons') AS found
FROM coupon_templates t
FULL JOIN (
    SELECT template_id,
           count(*) AS coupons,
           count(DISTINCT user_id) AS users,
           count(DISTINCT serial) AS serials,
           min(serial) AS first,
           max(serial) AS last
    FROM coupons
    GROUP BY template_id
) AS c USING (template_id)
WHERE t.template_id IS NULL
   OR t.issued > t.max_issued
   OR t.issued <> coalesce(c.coupons, 0)
   OR c.users <> c.coupons
   OR c.serials <> c.coupons
   OR c.first <> 1
   OR c.last <> c.coupons
