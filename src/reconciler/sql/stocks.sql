-- The stock of each product after the last entry that touched it.
UPDATE products
SET stock = s.stock, updated_at = greatest(products.updated_at, to_timestamp(s.at_ms / 1000.0::float8))
FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS s (product_id, stock, at_ms)
WHERE products.product_id = s.product_id
