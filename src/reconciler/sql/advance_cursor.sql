-- Compare-and-set of a cell's cursor ($1): from epoch $2, seq $3, tip $4 to epoch $5, seq $6, tip
-- $7. The row lock makes two leaders wait for each other; the loser then finds the cursor moved and
-- updates no row. The same happens to a leader that read the cursor when another server was the
-- gate ($10), or before an operator skipped a fact ($12: by differences). $13 is the highest format
-- version of the entries. A new epoch names its own
-- gate ($11).
UPDATE cell_cursors
SET epoch = $5,
    seq = $6,
    tip = $7,
    clock_ms = greatest(clock_ms, $8),
    events_written = events_written + $9,
    skipping = skipping AND epoch = $5,
    skip_steps = skip_steps + $12::boolean::int,
    halted_reason = NULL,
    log_format = greatest(log_format, $13),
    format_steps = format_steps + 1,
    gate = CASE WHEN epoch = $5 THEN gate ELSE $11 END,
    gate_epoch = CASE WHEN epoch = $5 THEN gate_epoch WHEN $11::text IS NULL THEN NULL ELSE $5 END,
    updated_at = now()
WHERE cell = $1 AND epoch = $2 AND seq = $3 AND tip = $4 AND skipping = $12
    AND CASE WHEN gate_epoch = epoch THEN gate END IS NOT DISTINCT FROM $10
-- From here to the end of the transaction, rows are found by their keys. For a large batch the
-- planner would otherwise scan whole tables, because it assumes that their pages are on disk.
RETURNING set_config('enable_seqscan', 'off', true),
    set_config('enable_hashjoin', 'off', true),
    set_config('enable_mergejoin', 'off', true)
