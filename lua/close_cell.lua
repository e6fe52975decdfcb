#!lua flags=allow-oom
-- Closes a cell: from now on every script refuses, until the epoch that a rebuild opens.
-- KEYS 1 meta · ARGV 1 epoch, 2 reason · Returns 1 when it closed the cell, else 0.
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then return 0 end
if redis.call('HGET', KEYS[1], 'state') ~= 'open' then return 0 end
redis.call('HSET', KEYS[1], 'state', 'closed', 'reason', ARGV[2])
return 1
