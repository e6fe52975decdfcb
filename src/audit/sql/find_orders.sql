-- How orders stand. As text, ids would be compared with every order's.
SELECT order_id, status FROM orders WHERE order_id = ANY ($1)
