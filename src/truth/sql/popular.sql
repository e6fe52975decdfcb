-- The latest refresh (up to $1, in milliseconds, if it is given) with its products. If nothing was
-- sold, one row without a product.
SELECT
    (extract(epoch FROM refreshes.refreshed_at) * 1000)::bigint,
    (extract(epoch FROM refreshes.window_from) * 1000)::bigint,
    (extract(epoch FROM refreshes.window_to) * 1000)::bigint,
    products.rank, products.product_id, products.sold
FROM (
    SELECT * FROM popular_refreshes
    WHERE $1::bigint IS NULL OR refreshed_at < to_timestamp(($1 + 1) / 1000.0::float8)
    ORDER BY refresh_id DESC
    LIMIT 1
) AS refreshes
LEFT JOIN popular_products AS products USING (refresh_id)
ORDER BY products.rank
