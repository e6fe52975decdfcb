-- The ledger, in the order of decision, so that entry_id follows that order.
COPY wallet_entries (user_id, kind, amount, balance_after, ref_id, at)
FROM STDIN WITH (FORMAT binary)
