-- The shared start of every deciding script: `#!lua`, lua/sight.lua, this, and then the script's own file.
--
-- KEYS  1 meta · 2 log · 3 idempotency records of today · 4 … of the day before · 5… the script's own
-- ARGV  1 MessagePack [epoch, highest seq seen, its tip, today in days since 1970, log limit, requests, values of each,
--         idempotency records that a user may make in a day, run id of the server that PostgreSQL names as the gate (nil:
--         any), latest time that the server's clock may show (nil: any)]
--       2 MessagePack list of the requests' values, one request after the other (a table for each would cost more than
--         many a decision): deadline_ms, [idempotency scope, request hash] or nil, and the body's, see each script
--       3 (may be absent) traces of the requests: put into the entry as they are, outside of the chain
-- Returns MessagePack, one of
--   {refused = [why, place]}       nothing was changed; why:
--       absent  there is no gate here         epoch    the caller's epoch is not the cell's
--       elsewhere  PostgreSQL names another server as the cell's gate
--       closed  the cell is closed            behind   the caller has seen another log: Redis went back in time
--       backlog PostgreSQL is too far behind  day      the caller's clock is on another day: repeat with `now`
--       log-gone the log is missing         clock  the server's clock is far ahead of the caller's
--   {decided = [verdicts, place]}  one packed verdict per request, in order:
--       [0, fact]  accepted and logged          [1, fact]     the stored answer to the same key and request
--       [2]        its deadline has passed      [3]           the same key was used with another request
--       [4, why]   refused by a rule of the shop; `why` is a name or {name = details}, see each script
--       [5, bytes] not decided, to be asked again: with what comes before it in the batch, the call would touch more than
--                  it may; so many bytes of coupons are in the way (0: that was not looked at)
--       [6, ms]    the user has made as many idempotency records today as one may; in `ms` another day begins
-- `place` is [epoch, seq, tip, applied, now, time]: where the log stands, and the clock: never running backwards (`now`),
-- and as the server tells it (`time`).

local META, LOG, RECORDS, RECORDS_BEFORE = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local FORMAT_VERSION = 1
local DAY_MS = 86400000
local COUPON_USABLE_MS = 365 * DAY_MS
local MAX_BALANCE = 1000000
local NULL = cjson.null
local COUPON_BYTES = 46 -- of one coupon in `held`, see src/gate/held.rs
local UNUSED = string.rep('\0', 16) -- where a coupon's order stands
local ARGUMENTS_PER_CALL = 4000 -- Lua can unpack some 8,000 values at once
-- A user's coupons are one value, read and written as a whole. So that nobody waits long for those who hold very many, a call
-- writes so many bytes of them (or one value), small ones aside, and reads few more than it may.
local HELD_WRITE_BYTES = 160 * 1024
local HELD_SMALL_BYTES = 1024
local HELD_READ_BYTES = 2 * 1024 * 1024
local HELD_PER_READ = 16

local head = cmsgpack.unpack(ARGV[1])
local EPOCH, SEEN_SEQ, SEEN_TIP, TODAY, LOG_LIMIT = head[1], head[2], head[3], head[4], head[5]
local REQUESTS, STEP, KEYS_PER_DAY = head[6], head[7], head[8]
-- Of a request with the key at `k`: the deadline is at k - 1, the first value of its body at k + 1.
local batch = cmsgpack.unpack(ARGV[2])
local LAST = REQUESTS * STEP

local meta = redis.call('HMGET', META, 'epoch', 'seq', 'tip', 'applied', 'clock', 'state')
local epoch, seq, tip, applied = tonumber(meta[1]) or 0, tonumber(meta[2]) or 0, meta[3] or '', tonumber(meta[4]) or 0
local clock = tonumber(meta[5]) or 0

-- The server's time is read once, for it moves within a script. Facts are dated by `now`, which never runs backwards;
-- deadlines are held against `time`, for they must pass even while a clock that was set back catches up.
local server_time = redis.call('TIME')
local time = server_time[1] * 1000 + math.floor(server_time[2] / 1000)
local now = math.max(clock, time)

local function place()
  return { epoch, seq, tip, applied, now, time }
end

local function refuse(why)
  return cmsgpack.pack({ refused = { why, place() } })
end

local function gate_refusal()
  if not meta[1] then return 'absent' end
  if epoch ~= EPOCH then return 'epoch' end
  if head[9] and head[9] ~= server_id() then return 'elsewhere' end
  if meta[6] ~= 'open' then return 'closed' end
  -- What is dated by a clock that was set far forward stays so: windows end, coupons expire.
  if head[10] and time > head[10] then return 'clock' end
  if not still_holds(LOG, epoch, seq, tip, SEEN_SEQ, SEEN_TIP) then return 'behind' end
  if seq - applied >= LOG_LIMIT then return 'backlog' end
  if math.floor(now / DAY_MS) ~= TODAY then return 'day' end
end

-- The distinct values at `column` of the bodies, and the place of each among them; of those requests only that name
-- something at `required`, if it is given.
local function distinct(column, required)
  local names, place, count = {}, {}, 0
  for k = 2, LAST, STEP do
    local name = batch[k + column]
    if name and not place[name] and (not required or batch[k + required]) then
      count = count + 1
      names[count], place[name] = name, count
    end
  end
  return names, place
end

-- The distinct products of all orders in the batch, whose lines are the bodies' third value.
local function ordered_products()
  local names, place, count = {}, {}, 0
  for k = 2, LAST, STEP do
    local lines = batch[k + 3]
    for i = 1, #lines, 2 do
      local name = lines[i]
      if not place[name] then
        count = count + 1
        names[count], place[name] = name, count
      end
    end
  end
  return names, place
end

-- Where the element begins whose bytes at `offset` are `bytes`, in a user's coupons; nil: there is none.
local function coupon_at(coupons, bytes, offset)
  local found = string.find(coupons, bytes, 1, true)
  while found and (found - 1 - offset) % COUPON_BYTES ~= 0 do found = string.find(coupons, bytes, found + 1, true) end
  return found and found - offset
end

-- Number, time of issue and order of the coupon that begins there.
local function coupon_parts(coupons, at)
  local mark, issued_at = string.sub(coupons, at, at + 3), struct.unpack('>I6', coupons, at + 24)
  return mark, issued_at, string.sub(coupons, at + 30, at + 45)
end

-- The user's coupons when the one that begins there is used by `order_id`, or UNUSED.
local function coupon_used_by(coupons, at, order_id)
  return string.sub(coupons, 1, at + 29) .. order_id .. string.sub(coupons, at + 46)
end

-- One HMGET (or a few): the values in the order of the names, false for absent ones.
local function fetch(key, names)
  if #names == 0 then return {} end
  if #names <= ARGUMENTS_PER_CALL then return redis.call('HMGET', key, unpack(names)) end
  local found = {}
  for first = 1, #names, ARGUMENTS_PER_CALL do
    local last = math.min(first + ARGUMENTS_PER_CALL - 1, #names)
    local values = redis.call('HMGET', key, unpack(names, first, last))
    for i = first, last do found[i] = values[i - first + 1] end
  end
  return found
end

-- What the batch needs of a hash: the names, the place of each, the values there (which a decision changes for those
-- after it), and the places that `store` is to write.
local function load(key, names, place)
  return { key = key, names = names, place = place, value = fetch(key, names), changed = {} }
end

-- The verdicts on requests that are to be asked again, by their place in the batch.
local later = {}
local NOT_READ = cmsgpack.pack({ 5, 0 })

-- Loads the coupons of the bodies' second value, the user; of those requests only that name one at `required`, if it is
-- given. Those that would make the call too long come to stand in `later`.
local function load_held(key, required)
  local names, place = distinct(2, required)
  local values, read, bytes, largest = {}, 0, 0, 0
  while read < #names and bytes <= HELD_READ_BYTES do
    local last = math.min(read + HELD_PER_READ, #names)
    local found = redis.call('HMGET', key, unpack(names, read + 1, last))
    for i, coupons in ipairs(found) do
      values[read + i] = coupons
      if coupons then bytes, largest = bytes + #coupons, math.max(largest, #coupons) end
    end
    read = last
  end
  local part, written = { key = key, names = names, place = place, value = values, changed = {} }, 0
  if read == #names and largest <= HELD_SMALL_BYTES then return part end
  for k = 2, LAST, STEP do
    local at = (not required or batch[k + required]) and place[batch[k + 2]]
    local size = at and values[at] and #values[at] or 0
    if at and at > read then
      later[k] = NOT_READ
    elseif size > HELD_SMALL_BYTES then
      if written > 0 and written + size > HELD_WRITE_BYTES then
        later[k] = cmsgpack.pack({ 5, size })
      else
        written = written + size
      end
    end
  end
  return part
end

-- One HSET (or a few) of name, value, name, value …
local function put(key, flat)
  for first = 1, #flat, ARGUMENTS_PER_CALL do
    redis.call('HSET', key, unpack(flat, first, math.min(first + ARGUMENTS_PER_CALL - 1, #flat)))
  end
end

-- Writes what was changed.
local function store(part)
  local names, values, changed, flat, count = part.names, part.value, part.changed, {}, 0
  for at = 1, #names do
    if changed[at] then
      local value = values[at]
      -- by itself, Redis writes numbers as fractions, which takes several times as long
      if type(value) == 'number' then value = string.format('%d', value) end
      flat[count + 1], flat[count + 2] = names[at], value
      count = count + 2
    end
  end
  put(part.key, flat)
end

-- Pieces of MessagePack, for what is packed once per request: put together in one expression, they need no tables and
-- few strings, of which each costs as much as several steps of Lua.
local NIL = '\192'
local ID = '\176' -- before the 16 bytes of an id
local TEXT = {} -- by length, what stands before a text
local function text_mark(length)
  local mark = TEXT[length]
  if mark then return mark end
  mark = length < 32 and string.char(160 + length)
    or length < 256 and string.char(217, length)
    or length < 65536 and struct.pack('>BI2', 218, length)
    or struct.pack('>BI4', 219, length)
  TEXT[length] = mark
  return mark
end

local function list_mark(length)
  return length < 16 and string.char(144 + length)
    or length < 65536 and struct.pack('>BI2', 220, length)
    or struct.pack('>BI4', 221, length)
end

local function packed_text(text)
  return text_mark(#text) .. text
end

-- A whole number from 0 to 2^53.
local function packed_number(number)
  return number < 128 and string.char(number)
    or number < 65536 and struct.pack('>BI2', 205, number)
    or number < 4294967296 and struct.pack('>BI4', 206, number)
    or struct.pack('>BI8', 207, number)
end

local function packed_key(key)
  return key and cmsgpack.pack(key) or NIL
end

local NOW = packed_number(now)

local LATE, KEY_REUSED = cmsgpack.pack({ 2 }), cmsgpack.pack({ 3 })
-- The entry's payload in pieces: its head, then the packed facts with their marks, in the order of acceptance.
local payload_pieces, accepted = { '' }, 0
local records = {} -- new idempotency records: scope → [request hash, decided_at, fact]

-- The user of a scope. Ids of users have no spaces, so users and scopes can be fields of one hash.
local function user_of(scope)
  return string.match(scope, '^[^ ]*')
end

-- Idempotency records of the batch's keys, as stored before it, and how many records each of their users has made today.
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

-- The verdict on a request that came too late or was answered before; nil: it is to be decided.
local function settled(deadline, key)
  if deadline < time then return LATE end
  if not key then return nil end
  local record = records[key[1]] or stored[key[1]]
  if not record or record[2] + DAY_MS <= now then return nil end
  if record[1] ~= key[2] then return KEY_REUSED end
  return '\146\1' .. packed_text(record[3])
end

-- The verdict on a request whose user has made as many records today as one may; nil: it is to be decided.
local function spent(key)
  if not key or made_today[user_of(key[1])] < KEYS_PER_DAY then return nil end
  return cmsgpack.pack({ 6, DAY_MS - now % DAY_MS })
end

-- Notes the packed fact; returns the verdict in two pieces. Most facts are of the same few lengths.
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

-- A refusal that rests on `at` having passed must hold when the server's clock is set back: `at` is remembered.
local passed_at = 0
local function passed(at)
  passed_at = math.max(passed_at, at)
end

-- Writes the entry; false when the log is gone. The meta key is written last, by `close_entry`, so that an entry
-- beyond `meta.seq` tells that a script stopped half way.
local function write_entry(kind)
  payload_pieces[1] = '\148' .. packed_number(FORMAT_VERSION) .. packed_text(kind) .. NOW .. list_mark(accepted)
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
end

local REFUSED = {} -- packed, those that are a mere name
local function refused(why)
  if type(why) == 'table' then return cmsgpack.pack({ 4, why }) end
  local packed = REFUSED[why] or cmsgpack.pack({ 4, why })
  REFUSED[why] = packed
  return packed
end

-- decide(k, key) returns a refusal, or nil, the packed fact with the key in it, and whether it is not logged, because it
-- changes nothing; write() makes the changes.
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
