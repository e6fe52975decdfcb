-- The frame of every deciding script: refusals of the whole batch, idempotency, verdicts, the
-- entry. src/gate/script.rs joins the scripts: `#!lua`, the files of lua/shared/, this one, and
-- then the script's own file, which ends with a call of `run`.
--
-- KEYS  1 meta · 2 log · 3 idempotency records of today · 4 … of the day before ·
--       5… the script's own
-- ARGV  1 MessagePack [epoch, highest seq seen, its tip, today in days since 1970, log limit,
--         requests, values of each, idempotency records that a user may make in a day, run id of
--         the server that PostgreSQL names as the gate (nil: any), latest time that the server's
--         clock may show (nil: any)]
--       2 MessagePack list of the requests' values: see batch.lua, and each script for its body
--       3 (may be absent) traces of the requests: stored in the entry as they are, outside of the
--         chain
-- Returns MessagePack, one of
--   {refused = [why, place]}       nothing was changed; why:
--       absent     there is no gate here
--       epoch      the caller's epoch is not the cell's
--       elsewhere  PostgreSQL names another server as the cell's gate
--       closed     the cell is closed
--       clock      the server's clock is far ahead of the caller's
--       behind     the caller has seen another log: Redis went back in time
--       backlog    PostgreSQL is too far behind
--       day        the caller's clock is on another day: repeat with `now`
--       log-gone   the log is missing
--   {decided = [verdicts, place]}  one packed verdict per request, in order:
--       [0, fact]   accepted and logged
--       [1, fact]   the stored answer to the same key and request
--       [2]         its deadline has passed
--       [3]         the same key was used with another request
--       [4, why]    refused by a rule of the shop; `why` is a name or {name = details}, see each
--                   script
--       [5, bytes]  not decided, send it again: together with the requests before it in the batch,
--                   the call would touch more than it may; so many bytes of coupons are in the way
--                   (0: they were not read)
--       [6, ms]     the user has made as many idempotency records as one may make today; in `ms`
--                   another day begins
-- `place` is [epoch, seq, tip, applied, now, time]: where the log stands, and the clock: never
-- running backwards (`now`), and as the server tells it (`time`).

local RECORDS, RECORDS_BEFORE = KEYS[3], KEYS[4]
-- Of an entry whose facts have nothing that older versions do not know, and of any other.
local FORMAT_VERSION, LATEST_FORMAT_VERSION = 1, 2
local MAX_BALANCE = 1000000

local TODAY, LOG_LIMIT, KEYS_PER_DAY = head[4], head[5], head[8]

local function gate_refusal()
  local refusal = cell_refusal(head[9])
  if refusal then return refusal end
  -- What is dated by a clock that was set far forward stays so: windows end, coupons expire.
  if head[10] and time > head[10] then return 'clock' end
  if is_behind() then return 'behind' end
  if seq - applied >= LOG_LIMIT then return 'backlog' end
  if math.floor(now / DAY_MS) ~= TODAY then return 'day' end
end

local NOW = packed_number(now)

local function packed_key(key)
  return key and cmsgpack.pack(key) or NIL
end

local LATE, KEY_REUSED = cmsgpack.pack({ 2 }), cmsgpack.pack({ 3 })
-- The entry's payload in pieces: its head, then the packed facts with their marks, in the order of
-- acceptance.
local payload_pieces, accepted = { '' }, 0
local format_version = FORMAT_VERSION
local records = {} -- new idempotency records: scope → [request hash, decided_at, fact]

-- The user of a scope. Ids of users have no spaces, so users and scopes can be fields of one hash.
local function user_of(scope)
  return string.match(scope, '^[^ ]*')
end

-- Idempotency records of the batch's keys, as stored before it; the number of records that each of
-- their users has made today; and the users who make one now.
local stored, made_today, makers = {}, {}, {}
local function fetch_records()
  local scopes, users = {}, {}
  for k = 2, LAST, STEP do
    local key = batch[k]
    if key then scopes[#scopes + 1], users[#users + 1] = key[1], user_of(key[1]) end
  end
  if #scopes == 0 then return end
  for i, made in ipairs(fetch(RECORDS, users)) do made_today[users[i]] = tonumber(made) or 0 end
  for _, bucket in ipairs({ RECORDS_BEFORE, RECORDS }) do
    for i, record in ipairs(fetch(bucket, scopes)) do
      if record then stored[scopes[i]] = cmsgpack.unpack(record) end
    end
  end
end

-- The verdict on a request that came too late or was answered before; nil: it must be decided.
local function settled(deadline, key)
  if deadline < time then return LATE end
  if not key then return nil end
  local record = records[key[1]] or stored[key[1]]
  if not record or record[2] + DAY_MS <= now then return nil end
  if record[1] ~= key[2] then return KEY_REUSED end
  return '\146\1' .. packed_text(record[3])
end

-- The verdict on a request whose user has made as many records as one may make today; nil: it must
-- be decided.
local function spent(key)
  if not key or made_today[user_of(key[1])] < KEYS_PER_DAY then return nil end
  return cmsgpack.pack({ 6, DAY_MS - now % DAY_MS })
end

-- Adds the packed fact to the entry; returns the verdict in two pieces. The marks are remembered by
-- length, because most
-- facts are of the same few lengths.
local marks, verdict_marks = {}, {}
local function accept(key, fact)
  local length = #fact
  local mark = marks[length]
  if not mark then
    mark = text_mark(length)
    marks[length], verdict_marks[length] = mark, text_mark(2 + #mark + length) .. '\146\0' .. mark
  end
  accepted = accepted + 1
  payload_pieces[2 * accepted], payload_pieces[2 * accepted + 1] = mark, fact
  if key then
    local user = user_of(key[1])
    records[key[1]] = { key[2], now, fact }
    made_today[user], makers[user] = made_today[user] + 1, true
  end
  return verdict_marks[length], fact
end

-- A refusal because `at` has passed must still hold when the server's clock is set back, so the
-- clock is stored then.
local passed_at = 0
local function passed(at)
  passed_at = math.max(passed_at, at)
end

-- To be called when a fact is of the latest format.
local function needs_latest_format()
  format_version = LATEST_FORMAT_VERSION
end

-- Writes the entry; false when the log is gone. `close_entry` writes the meta key last, so an entry
-- beyond `meta.seq` shows that a script stopped half way.
local function write_entry(kind)
  payload_pieces[1] = '\148' .. packed_number(format_version) .. packed_text(kind) .. NOW
    .. list_mark(accepted)
  local payload = table.concat(payload_pieces)
  tip = redis.sha1hex(tip .. payload)
  local id = string.format('%d-%d', epoch, seq + 1)
  local fields = { 'p', payload, 't', tip }
  if ARGV[3] then fields[5], fields[6] = 'x', ARGV[3] end
  if not redis.call('XADD', LOG, 'NOMKSTREAM', id, unpack(fields)) then return false end
  seq = seq + 1
  return true
end

local function close_entry()
  if next(records) then
    local flat = {}
    for scope, record in pairs(records) do
      flat[#flat + 1], flat[#flat + 2] = scope, cmsgpack.pack(record)
    end
    for user in pairs(makers) do
      flat[#flat + 1], flat[#flat + 2] = user, string.format('%d', made_today[user])
    end
    put(RECORDS, flat)
  end
  redis.call('HSET', META, 'seq', seq, 'tip', tip, 'clock', now)
  if format_version > FORMAT_VERSION then redis.call('HSET', META, 'state', OPEN_LATEST) end
end

local REFUSED = {} -- packed refusals that are a mere name
local function refused(why)
  if type(why) == 'table' then return cmsgpack.pack({ 4, why }) end
  local packed = REFUSED[why] or cmsgpack.pack({ 4, why })
  REFUSED[why] = packed
  return packed
end

-- decide(k, key) returns a refusal; or nil, the packed fact with the key in it, and true if the
-- fact changes nothing and is not logged. write() stores the changes.
local function run(kind, decide, write)
  fetch_records()
  local pieces, count = { '\129\167decided\146' .. list_mark(REQUESTS) }, 1
  for k = 2, LAST, STEP do
    local key = batch[k]
    local verdict, fact = settled(batch[k - 1], key) or later[k] or spent(key), nil
    if not verdict then
      local why, unlogged
      why, fact, unlogged = decide(k, key)
      if unlogged then
        verdict, fact = '\146\0' .. packed_text(fact), nil
      elseif fact then
        verdict = accept(key, fact)
      else
        verdict = refused(why)
      end
    end
    if not fact then verdict = packed_text(verdict) end
    pieces[count + 1], pieces[count + 2] = verdict, fact
    count = count + (fact and 2 or 1)
  end
  if accepted > 0 then
    if not write_entry(kind) then return refuse('log-gone') end
    write()
    close_entry()
  elseif passed_at > clock then
    redis.call('HSET', META, 'clock', now)
  end
  pieces[count + 1] = cmsgpack.pack(place())
  return table.concat(pieces)
end

local refusal = gate_refusal()
if refusal then return refuse(refusal) end
