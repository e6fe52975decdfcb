#!lua flags=allow-oom
-- Tells the gate how far PostgreSQL has applied the log, and trims what lies well behind.
-- KEYS 1 meta · 2 log · ARGV 1 epoch, 2 applied seq, 3 entries kept behind it
-- Returns 1, or 0 when the epoch is over.
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then return 0 end
local applied = tonumber(ARGV[2])
if applied > tonumber(redis.call('HGET', KEYS[1], 'applied')) then redis.call('HSET', KEYS[1], 'applied', ARGV[2]) end
local keep_from = applied - tonumber(ARGV[3])
if keep_from > 0 then redis.call('XTRIM', KEYS[2], 'MINID', '~', string.format('%s-%d', ARGV[1], keep_from)) end
return 1
