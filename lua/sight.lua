-- Is this the Redis that the caller means, and does it still hold what the caller was told? Shared by the deciding scripts,
-- the reads, and what closes a cell or tells how far PostgreSQL is.

-- This server's run id: its own, also where its data are a copy of another's. Empty: it does not say.
local function server_id()
  local said = redis.pcall('INFO', 'server')
  return type(said) == 'string' and string.match(said, 'run_id:(%w+)') or ''
end

-- False when the log does not have the entry that the caller saw last, or has another one in its place: Redis went back
-- in time (and may have been written to since). An entry that was trimmed had been applied long before.
local function still_holds(log, epoch, seq, tip, seen_seq, seen_tip)
  if seen_seq == 0 then return true end
  if seq <= seen_seq then return seq == seen_seq and tip == seen_tip end
  local id = string.format('%d-%d', epoch, seen_seq)
  local entry = redis.call('XRANGE', log, id, id)[1]
  if entry then return entry[2][4] == seen_tip end
  local first = redis.call('XRANGE', log, '-', '+', 'COUNT', 1)[1]
  return not first or tonumber(string.match(first[1], '-(%d+)$')) > seen_seq
end

