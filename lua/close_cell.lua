-- Closes a cell: from now on every script refuses, until a rebuild opens the next epoch. (After
-- `#!lua flags=allow-oom` and shared/still_holds.lua.)
-- KEYS 1 meta · 2 log, if ARGV names an entry
-- ARGV 1 epoch, 2 reason, 3 `over`: the reason replaces that of a closed cell
--      4 and 5, may be absent: number and tip of an entry. Closes only if this Redis does not
--      hold that entry, because the caller may have missed it on another server than this one.
-- Returns 1 when it closed the cell, 2 when it only replaced the reason, else 0.
local meta = redis.call('HMGET', KEYS[1], 'epoch', 'state', 'seq', 'tip')
if meta[1] ~= ARGV[1] then return 0 end
local function holds(seq, tip)
  return still_holds(KEYS[2], tonumber(meta[1]), tonumber(meta[3]) or 0, meta[4], seq, tip)
end
if ARGV[4] and holds(tonumber(ARGV[4]), ARGV[5]) then return 0 end
local open = meta[2] == 'open' or meta[2] == 'open-2'
if not open and ARGV[3] ~= 'over' then return 0 end
redis.call('HSET', KEYS[1], 'state', 'closed', 'reason', ARGV[2])
return open and 1 or 2
