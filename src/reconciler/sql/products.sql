-- Products as the staff last put them. Their stock is written by stocks.sql.
INSERT INTO products (
    product_id, name, price, status, stock, created_at, updated_at,
    sale_from, sale_until, per_user_limit, limit_number, attributes
)
SELECT p.product_id, p.name, p.price, p.status, p.stock, to_timestamp(p.at_ms / 1000.0::float8), to_timestamp(p.at_ms / 1000.0::float8),
    to_timestamp(p.sale_from_ms / 1000.0::float8), to_timestamp(p.sale_until_ms / 1000.0::float8), p.per_user_limit, p.limit_number,
    p.attributes
FROM unnest(
    $1::text[], $2::text[], $3::bigint[], $4::text[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[], $9::bigint[],
    $10::bigint[], $11::text[]
) AS p (product_id, name, price, status, stock, at_ms, sale_from_ms, sale_until_ms, per_user_limit, limit_number, attributes)
ON CONFLICT (product_id) DO UPDATE
SET name = excluded.name, price = excluded.price, status = excluded.status, updated_at = excluded.updated_at,
    sale_from = excluded.sale_from, sale_until = excluded.sale_until, per_user_limit = excluded.per_user_limit,
    limit_number = coalesce(excluded.limit_number, products.limit_number), attributes = excluded.attributes
