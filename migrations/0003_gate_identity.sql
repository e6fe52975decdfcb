-- Which Redis server decides in a cell's epoch. `gate` is the server's run id, and counts only while `gate_epoch` is the
-- cursor's epoch: a binary that does not know these columns moves the epoch and leaves them behind. An empty text: nobody
-- may decide, another server is taking over.
-- oldest: 1

-- step: columns without a default, so that no row is written
ALTER TABLE cell_cursors
    ADD COLUMN gate text,
    ADD COLUMN gate_epoch bigint;
