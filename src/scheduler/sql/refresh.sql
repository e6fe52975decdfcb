-- Makes one list: $1 its local day (null: not the list of a midnight), window [$2, $3), made at $4;
-- times in milliseconds. One statement, so one transaction. If two instances make the list of the
-- same day at once, the second waits at the unique key for the first, then does nothing. Only paid
-- orders count.
WITH fresh AS (
    INSERT INTO popular_refreshes (list_day, window_from, window_to, refreshed_at)
    VALUES ($1::date,
            to_timestamp($2::double precision / 1000),
            to_timestamp($3::double precision / 1000),
            to_timestamp($4::double precision / 1000))
    ON CONFLICT (list_day) DO NOTHING
    RETURNING refresh_id
),
sales AS (
    SELECT i.product_id, sum(i.quantity)::bigint AS sold
    FROM orders o
    JOIN order_items i USING (order_id)
    WHERE o.status = 'paid'
      AND o.ordered_at >= to_timestamp($2::double precision / 1000)
      AND o.ordered_at < to_timestamp($3::double precision / 1000)
    GROUP BY i.product_id
),
ranked AS (
    SELECT row_number() OVER (ORDER BY sold DESC, product_id) AS rank, product_id, sold
    FROM sales
),
listed AS (
    INSERT INTO popular_products (refresh_id, rank, product_id, sold)
    SELECT fresh.refresh_id, ranked.rank, ranked.product_id, ranked.sold
    FROM fresh CROSS JOIN ranked
    WHERE ranked.rank <= 5
)
SELECT refresh_id FROM fresh
