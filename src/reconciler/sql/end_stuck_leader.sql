-- Ends the session that holds the leader lock ($1) if it has waited for rows of a COPY for longer
-- than $2 seconds: its process is frozen while it holds the lock on the cursor's row. No limit of
-- the session itself ends it: `statement_timeout` does not interrupt the wait for a client's
-- message, and such a session is not idle.
SELECT coalesce(bool_or(pg_terminate_backend(leader.pid)), false)
FROM pg_locks held
JOIN pg_stat_activity leader USING (pid)
WHERE held.locktype = 'advisory'
    AND held.granted
    AND held.objsubid = 1 -- a lock with a single bigint key
    AND leader.datname = current_database()
    AND (held.classid::bigint << 32) | held.objid::bigint = $1
    AND leader.state = 'active'
    AND leader.wait_event = 'ClientRead'
    AND leader.query_start < clock_timestamp() - make_interval(secs => $2)
