-- Ends the session that holds the leader lock ($1) if it has waited for rows of a COPY for longer than $2 seconds: its
-- process is frozen, and holds the cursor's row. Its own limits do not end this; PostgreSQL lets no `statement_timeout`
-- interrupt a client's message, and such a session is not idle.
SELECT coalesce(bool_or(pg_terminate_backend(leader.pid)), false)
FROM pg_locks held
JOIN pg_stat_activity leader USING (pid)
WHERE held.locktype = 'advisory'
    AND held.granted
    AND held.objsubid = 1 -- of a single number
    AND leader.datname = current_database()
    AND (held.classid::bigint << 32) | held.objid::bigint = $1
    AND leader.state = 'active'
    AND leader.wait_event = 'ClientRead'
    AND leader.query_start < clock_timestamp() - make_interval(secs => $2)
