-- A rebuild claims the next epoch and closes the present one. Only the holder of the highest claim
-- can open. (After `#!lua flags=allow-oom` and shared/still_holds.lua.)
-- KEYS 1 meta · ARGV 1 the epoch to claim, 2 (may be absent) run id of the server that the rebuild
-- addresses
-- Returns 1, or 0 when that epoch or a later one is taken, or this is another server.
if ARGV[2] and ARGV[2] ~= server_id() then return 0 end
-- No script writes a `meta` that is no hash, and such a key would keep the cell closed for ever.
if redis.call('TYPE', KEYS[1]).ok ~= 'hash' then redis.call('DEL', KEYS[1]) end
local meta = redis.call('HMGET', KEYS[1], 'epoch', 'claim')
local wanted = tonumber(ARGV[1])
if wanted <= math.max(tonumber(meta[1]) or 0, tonumber(meta[2]) or 0) then return 0 end
redis.call('HSET', KEYS[1], 'claim', ARGV[1])
if meta[1] then redis.call('HSET', KEYS[1], 'state', 'closed', 'reason', 'rebuilding') end
return 1
