INSERT INTO order_items (order_id, line_no, product_id, name, unit_price, quantity, amount)
SELECT i.order_id, i.line_no, i.product_id, i.name, i.unit_price, i.quantity, i.amount
FROM unnest($1::uuid[], $2::smallint[], $3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::bigint[])
    AS i (order_id, line_no, product_id, name, unit_price, quantity, amount)
