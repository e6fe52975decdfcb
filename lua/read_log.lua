-- Reads the log, bounded by bytes: an entry is a whole batch, so a few of them can be many
-- megabytes. (After `#!lua flags=no-writes`.)
-- KEYS 1 log
-- ARGV 1 id after which to read, 2 most entries, 3 most bytes, 4 bytes of the first entry that were
--      read before
-- Returns a flat list: 1 when more entries may follow, else 0; then of each entry: id, tip, bytes
-- of its payload, bytes of its traces, and both as one text. If the first entry alone is larger
-- than the bound, the text is a part of it and the caller reads on. Reads up to the first element
-- that is no entry; a log that is missing, or no stream, has none.
local LOG, MOST_ENTRIES = KEYS[1], tonumber(ARGV[2])
local MOST_BYTES, READ_BEFORE = tonumber(ARGV[3]), tonumber(ARGV[4])

-- Payload, tip and traces of the element after this id, and its id; nil: none follows.
local function next_entry(after)
  -- one by one, so that entries beyond the bound are not copied
  local found = redis.pcall('XRANGE', LOG, '(' .. after, '+', 'COUNT', 1)
  if found.err and not string.find(found.err, 'WRONGTYPE', 1, true) then error(found.err) end
  local element = not found.err and found[1]
  if not element then return nil end
  local fields = {}
  for i = 1, #element[2], 2 do fields[element[2][i]] = element[2][i + 1] end
  if not fields.p or not fields.t then return nil end
  return fields.p, fields.t, fields.x or '', element[1]
end

local answer, last, bytes = { '1' }, ARGV[1], 0
for count = 1, MOST_ENTRIES do
  local payload, tip, traces, id = next_entry(last)
  if not payload then
    answer[1] = '0'
    break
  end
  local text = payload .. traces
  if count == 1 then
    if READ_BEFORE > 0 or #text > MOST_BYTES then
      text = string.sub(text, READ_BEFORE + 1, READ_BEFORE + MOST_BYTES)
    end
  elseif bytes + #text > MOST_BYTES then
    break
  end
  bytes, last = bytes + #text, id
  local at = #answer
  answer[at + 1], answer[at + 2] = id, tip
  answer[at + 3], answer[at + 4] = tostring(#payload), tostring(#traces)
  answer[at + 5] = text
end
return answer
