-- The facts of cell $1 that were answered and are not true, grouped by user, and what holds now.
-- With an epoch $2: those that were skipped there or changed by a skip. With null: those that
-- rebuilds could not apply and that no report file has yet.
SELECT q.epoch, q.seq, q.fact, q.outcome, q.kind, q.user_id, q.id, q.told::text AS told, q.holds::text AS holds, q.keyed,
    q.reason, w.balance,
    CASE q.kind
        WHEN 'order' THEN o.order_id IS NOT NULL
        WHEN 'cancellation' THEN coalesce(o.status = 'cancelled', false)
        WHEN 'coupon' THEN EXISTS (SELECT FROM coupons c WHERE c.coupon_id = q.id)
        WHEN 'charge' THEN EXISTS (
            SELECT FROM wallet_entries e WHERE e.user_id = q.user_id AND e.kind = 'charge' AND e.ref_id = q.id
        )
    END AS present
FROM quarantined_facts q
LEFT JOIN wallets w ON w.user_id = q.user_id
LEFT JOIN orders o ON q.kind IN ('order', 'cancellation') AND o.order_id = q.id
WHERE q.cell = $1
    AND CASE WHEN $2::bigint IS NULL THEN q.outcome = 'lost' AND q.reported_at IS NULL
        ELSE q.epoch = $2 AND q.outcome <> 'lost' END
ORDER BY q.user_id NULLS LAST, q.epoch, q.seq, q.fact
