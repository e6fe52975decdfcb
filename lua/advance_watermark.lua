-- Advances the watermark, which says how far PostgreSQL has applied the log, and trims entries well
-- behind it. (After `#!lua flags=allow-oom` and shared/still_holds.lua.)
-- KEYS 1 meta · 2 log · ARGV 1 epoch, 2 applied seq, 3 its tip, 4 entries kept behind it
-- Returns 1; 0 when the epoch is over, or when the log holds another entry there than PostgreSQL
-- has applied. Then Redis went back in time meanwhile, and a request that waits for an entry of the
-- new branch must not see it as applied.
local meta = redis.call('HMGET', KEYS[1], 'epoch', 'seq', 'tip', 'applied')
if meta[1] ~= ARGV[1] then return 0 end
local applied = tonumber(ARGV[2])
if not still_holds(KEYS[2], tonumber(ARGV[1]), tonumber(meta[2]), meta[3], applied, ARGV[3]) then
  return 0
end
if applied > tonumber(meta[4]) then redis.call('HSET', KEYS[1], 'applied', ARGV[2]) end
local keep_from = applied - tonumber(ARGV[4])
if keep_from > 0 then
  redis.call('XTRIM', KEYS[2], 'MINID', '~', string.format('%s-%d', ARGV[1], keep_from))
end
return 1
