-- Each cell's cursor, and on each row the length of the outbox: events written less events published, because
-- counting a long outbox row by row would take longer the more urgently the number is needed.
SELECT
    cell, epoch, seq, halted_reason,
    greatest(
        (sum(events_written) OVER ())::bigint - (SELECT coalesce(max(events_published), 0) FROM relay_progress),
        0
    ) AS outbox_length
FROM cell_cursors
ORDER BY cell
