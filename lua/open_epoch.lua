#!lua
-- The last step of a rebuild: the loaded epoch becomes the cell's, all at once.
-- KEYS 1 meta · 2 the new epoch's log · ARGV 1 epoch, 2 tip of the empty log, 3 clock_ms
-- Returns 1, or 0 when another rebuild has claimed a later epoch (or Redis has lost the claim): load again.
local meta = redis.call('HMGET', KEYS[1], 'epoch', 'claim', 'clock')
if meta[2] ~= ARGV[1] or (tonumber(meta[1]) or 0) >= tonumber(ARGV[1]) then return 0 end
redis.call('XADD', KEYS[2], ARGV[1] .. '-0', 'p', '', 't', ARGV[2])
local clock = string.format('%d', math.max(tonumber(meta[3]) or 0, tonumber(ARGV[3])))
redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'seq', 0, 'tip', ARGV[2], 'applied', 0, 'clock', clock, 'state', 'open')
redis.call('HDEL', KEYS[1], 'reason')
return 1
