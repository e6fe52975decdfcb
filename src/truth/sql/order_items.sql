-- The items of a page of orders ($1), in the order of their lines.
SELECT order_id, product_id, name, unit_price, quantity, amount, limit_number
FROM order_items
WHERE order_id = ANY($1)
ORDER BY order_id, line_no
