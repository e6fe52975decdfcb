COPY order_items (order_id, line_no, product_id, name, unit_price, quantity, amount, limit_number)
FROM STDIN WITH (FORMAT binary)
