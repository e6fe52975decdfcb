-- The ledger has one payment for each order and one refund for each order that was cancelled or has
-- expired, both of the user who placed the order, and of what the order takes from the wallet. An
-- order that takes nothing because all is paid outside has none. There are no other payments or
-- refunds.
SELECT coalesce(o.order_id, e.ref_id)::text AS id,
       CASE
           WHEN o.order_id IS NULL THEN 'no entries'
           ELSE o.user_id || ' paid ' || o.won
                || CASE WHEN o.ended THEN ', refunded ' || o.won ELSE '' END
       END AS expected,
       CASE
           WHEN e.ref_id IS NULL THEN 'no entries'
           ELSE e.users || ' paid ' || e.paid || ' in ' || e.payments
                || CASE e.refunds WHEN 0 THEN '' ELSE ', refunded ' || e.refunded || ' in ' || e.refunds END
       END AS found
FROM (
    SELECT order_id, user_id, external, coalesce(wallet_amount, total) AS won, status IN ('cancelled', 'expired') AS ended
    FROM orders
) AS o
FULL JOIN (
    SELECT ref_id,
           string_agg(DISTINCT user_id, ', ') AS users,
           coalesce(-sum(amount) FILTER (WHERE kind = 'payment'), 0) AS paid,
           coalesce(sum(amount) FILTER (WHERE kind = 'refund'), 0) AS refunded,
           count(*) FILTER (WHERE kind = 'payment') AS payments,
           count(*) FILTER (WHERE kind = 'refund') AS refunds
    FROM wallet_entries
    WHERE kind IN ('payment', 'refund')
    GROUP BY ref_id
) AS e ON e.ref_id = o.order_id
WHERE o.order_id IS NULL
   OR o.won <> coalesce(e.paid, 0)
   OR CASE WHEN o.ended THEN o.won ELSE 0 END <> coalesce(e.refunded, 0)
   OR e.payments > 1
   OR e.refunds > CASE WHEN o.ended THEN 1 ELSE 0 END
   OR e.users <> o.user_id
