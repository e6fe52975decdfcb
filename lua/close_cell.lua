#!lua flags=allow-oom
-- Closes a cell: from now on every script refuses, until the epoch that a rebuild opens.
-- KEYS 1 meta · ARGV 1 epoch, 2 reason, 3 `over`: the reason stands over the one that a closed cell has already
-- Returns 1 when it closed the cell, 2 when it only gave another reason, else 0.
local meta = redis.call('HMGET', KEYS[1], 'epoch', 'state')
if meta[1] ~= ARGV[1] then return 0 end
local open = meta[2] == 'open'
if not open and ARGV[3] ~= 'over' then return 0 end
redis.call('HSET', KEYS[1], 'state', 'closed', 'reason', ARGV[2])
return open and 1 or 2
