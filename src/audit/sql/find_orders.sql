-- The status of these orders. The ids are typed: compared as text, they could not use the index and
-- every order would be read.
SELECT order_id, status FROM orders WHERE order_id = ANY ($1)
