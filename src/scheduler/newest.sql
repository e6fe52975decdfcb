-- Up to when the lists reach (milliseconds); null when there is none.
SELECT (extract(epoch FROM max(window_to)) * 1000)::bigint FROM popular_refreshes
