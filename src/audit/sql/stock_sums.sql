-- Each product's stock is the sum of the staff's adjustments less the quantities in paid
-- and pending orders. Cancelled and expired orders have given theirs back.
SELECT product_id AS id,
       coalesce(m.remaining, 0)::text AS expected,
       coalesce(p.stock::text, 'no product') AS found
FROM products p
FULL JOIN (
    SELECT product_id, sum(change) AS remaining
    FROM (
        SELECT product_id, delta AS change FROM stock_adjustments
        UNION ALL
        SELECT i.product_id, -i.quantity FROM order_items i JOIN orders o USING (order_id) 
        WHERE o.status IN ('paid', 'pending')
    ) AS movements
    GROUP BY product_id
) AS m USING (product_id)
WHERE coalesce(m.remaining, 0) IS DISTINCT FROM p.stock
