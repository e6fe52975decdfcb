-- Keeps the $1 newest lists.
DELETE FROM popular_refreshes
WHERE refresh_id <= (SELECT refresh_id FROM popular_refreshes ORDER BY refresh_id DESC OFFSET $1 LIMIT 1)
