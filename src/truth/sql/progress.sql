-- Each cell's cursor and, on each row, the length of the outbox. It is computed as events written
-- less events published: counting the rows would take longest when the outbox is long and the
-- number is needed most.
SELECT
    cell, epoch, seq, halted_reason,
    greatest(
        (sum(events_written) OVER ())::bigint - (SELECT coalesce(max(events_published), 0) FROM relay_progress),
        0
    ) AS outbox_length
FROM cell_cursors
ORDER BY cell
