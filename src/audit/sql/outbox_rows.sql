-- Each waiting event belongs to an order, and names what happened to it: completed,
-- cancelled or expired.
SELECT event_id AS id,
       CASE
           WHEN order_id IS NULL THEN 'the id of an order and what became of it'
           ELSE 'an order that is ' || substr(event_id, 38) || ', key order.' || substr(event_id, 38)
       END AS expected,
       coalesce('an order that is ' || o.status, 'no order') || ', key ' || routing_key AS found
FROM (
    SELECT event_id, routing_key,
           CASE
               WHEN event_id ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}[.](completed|cancelled|expired)$'
               THEN left(event_id, 36)::uuid
           END AS order_id
    FROM outbox
) AS waiting
LEFT JOIN orders o USING (order_id)
WHERE o.order_id IS NULL
   OR routing_key <> 'order.' || substr(event_id, 38)
   OR substr(event_id, 38) IN ('cancelled', 'expired') AND o.status <> substr(event_id, 38)
   OR substr(event_id, 38) = 'completed' AND o.status IN ('pending', 'expired')
