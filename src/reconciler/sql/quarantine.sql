-- Keeps the facts of one entry ($1 cell, $2 epoch, $3 seq, $4 tip) that were answered and are not
-- true. Existing rows stay: an operator's skip is registered before it is applied, and a rebuild
-- that was interrupted writes the same rows again.
INSERT INTO quarantined_facts (
    cell, epoch, seq, tip, fact, outcome, kind, user_id, id, told, holds, keyed, reason, raw
)
SELECT $1, $2, $3, $4, q.fact, q.outcome, q.kind, q.user_id, q.id, q.told::jsonb, q.holds::jsonb, q.keyed, q.reason, q.raw
FROM unnest(
    $5::int[], $6::text[], $7::text[], $8::text[], $9::uuid[], $10::text[], $11::text[], $12::bool[], $13::text[],
    $14::bytea[]
) AS q (fact, outcome, kind, user_id, id, told, holds, keyed, reason, raw)
ON CONFLICT DO NOTHING
