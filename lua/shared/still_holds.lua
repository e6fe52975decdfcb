-- Is this the Redis that the caller means, and does it still hold the entry that the caller has
-- seen?

-- This server's run id: its own, also when its data are a copy of another server's. Empty: the
-- server does not say.
local function server_id()
  local said = redis.pcall('INFO', 'server')
  return type(said) == 'string' and string.match(said, 'run_id:(%w+)') or ''
end

-- False when the log does not have the entry that the caller saw last, or has another one in its
-- place: Redis went back in time (and may have been written to since). An entry that was trimmed
-- was applied long before, so it counts as held.
local function still_holds(log, epoch, seq, tip, seen_seq, seen_tip)
  if seen_seq == 0 then return true end
  if seq <= seen_seq then return seq == seen_seq and tip == seen_tip end
  local id = string.format('%d-%d', epoch, seen_seq)
  local entry = redis.call('XRANGE', log, id, id)[1]
  if entry then return entry[2][4] == seen_tip end
  local first = redis.call('XRANGE', log, '-', '+', 'COUNT', 1)[1]
  return not first or tonumber(string.match(first[1], '-(%d+)$')) > seen_seq
end

