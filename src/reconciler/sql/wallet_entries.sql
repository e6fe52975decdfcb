-- The ledger, in the order of decision: entry_id follows it.
COPY wallet_entries (user_id, kind, amount, balance_after, ref_id, at)
FROM STDIN WITH (FORMAT binary)
