-- Each order has items, the items sum up to its subtotal, and subtotal less discount is its total.
-- No item lacks an order.
SELECT order_id::text AS id,
       CASE
           WHEN o.order_id IS NULL THEN 'no items'
           ELSE 'items ' || o.subtotal || ', total ' || (o.subtotal - o.discount)
       END AS expected,
       CASE
           WHEN i.order_id IS NULL THEN 'no items'
           WHEN o.order_id IS NULL THEN 'items ' || i.amount || ', no order'
           ELSE 'items ' || i.amount || ', total ' || o.total
       END AS found
FROM orders o
FULL JOIN (SELECT order_id, sum(amount) AS amount FROM order_items GROUP BY order_id) i USING (order_id)
WHERE o.subtotal IS DISTINCT FROM i.amount OR o.subtotal - o.discount IS DISTINCT FROM o.total
