-- The last step of a rebuild: the loaded epoch becomes the cell's, all at once, if all of it is
-- there. (After `#!lua` and shared/still_holds.lua.)
-- KEYS 1 meta · 2 the new epoch's log · 3… its hashes and sorted sets
-- ARGV 1 epoch, 2 tip of the empty log, 3 clock_ms, 4 highest template number, 5 highest limit
--      number, 6 the state: `open`, or `open-2` if the epoch holds what older versions do not know,
--      7 where PostgreSQL stood when the epoch before ended (may be empty), 8… fields that each of these
--      must have, and
--      last (may be absent) run id of the server that was loaded
-- Returns 1, or 0 when another rebuild has claimed a later epoch, or Redis has lost the claim or a
-- part of what was loaded (a replica was promoted meanwhile): load again.
local meta = redis.call('HMGET', KEYS[1], 'epoch', 'claim', 'clock')
if meta[2] ~= ARGV[1] or (tonumber(meta[1]) or 0) >= tonumber(ARGV[1]) then return 0 end
local server = ARGV[#KEYS + 6]
if server and server ~= server_id() then return 0 end
for i = 3, #KEYS do
  local length = redis.call('TYPE', KEYS[i]).ok == 'zset' and 'ZCARD' or 'HLEN'
  if redis.call(length, KEYS[i]) ~= tonumber(ARGV[i + 5]) then return 0 end
end
redis.call('XADD', KEYS[2], ARGV[1] .. '-0', 'p', '', 't', ARGV[2], 'o', ARGV[7] or '')
local clock = string.format('%d', math.max(tonumber(meta[3]) or 0, tonumber(ARGV[3])))
redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'seq', 0, 'tip', ARGV[2], 'applied', 0,
  'clock', clock, 'state', ARGV[6], 'templates', ARGV[4], 'limits', ARGV[5])
redis.call('HDEL', KEYS[1], 'reason')
return 1
