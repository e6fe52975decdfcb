-- The ledger, in the order of decision: entry_id follows it.
INSERT INTO wallet_entries (user_id, kind, amount, balance_after, ref_id, at)
SELECT w.user_id, w.kind, w.amount, w.balance_after, w.ref_id, to_timestamp(w.at_ms / 1000.0::float8)
FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::uuid[], $6::bigint[])
    WITH ORDINALITY AS w (user_id, kind, amount, balance_after, ref_id, at_ms, place)
ORDER BY w.place
