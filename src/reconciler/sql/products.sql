-- Products as the staff last put them. Their stock is written by stocks.sql.
INSERT INTO products (product_id, name, price, status, stock, created_at, updated_at)
SELECT p.product_id, p.name, p.price, p.status, p.stock, to_timestamp(p.at_ms / 1000.0::float8), to_timestamp(p.at_ms / 1000.0::float8)
FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[], $5::bigint[], $6::bigint[])
    AS p (product_id, name, price, status, stock, at_ms)
ON CONFLICT (product_id) DO UPDATE
SET name = excluded.name, price = excluded.price, status = excluded.status, updated_at = excluded.updated_at
