SELECT scope AS id,
       json_build_object(
           'request_hash', encode(request_hash, 'hex'), 'reply', encode(reply, 'hex'),
           'decided_at', (extract(epoch FROM decided_at) * 1000)::bigint) AS shown
FROM idempotency_records WHERE scope = ANY ($1)
