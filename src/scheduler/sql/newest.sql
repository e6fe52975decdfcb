-- The moment up to which the lists reach (milliseconds); null if there is none.
SELECT (extract(epoch FROM max(window_to)) * 1000)::bigint FROM popular_refreshes
