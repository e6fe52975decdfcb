-- The shared start of every deciding script: `#!lua`, lua/sight.lua, this, and then the script's own file.
--
-- KEYS  1 meta · 2 log · 3 idempotency records of today · 4 … of the day before · 5… the script's own
-- ARGV  1 MessagePack [epoch, highest seq seen, its tip, today in days since 1970, log limit]
--       2 MessagePack batch: list of [deadline_ms, [idempotency scope, request hash] or nil, body]
--       3 (may be absent) traces of the requests: put into the entry as they are, outside of the chain
-- Returns MessagePack, one of
--   {refused = [why, place]}       nothing was changed; why:
--       absent  there is no gate here         epoch    the caller's epoch is not the cell's
--       closed  the cell is closed            behind   the caller has seen another log: Redis went back in time
--       backlog PostgreSQL is too far behind  day      the caller's clock is on another day: repeat with `now`
--       log-gone the log is missing
--   {decided = [verdicts, place]}  one packed verdict per request, in order:
--       [0, fact]  accepted and logged          [1, fact]     the stored answer to the same key and request
--       [2]        its deadline has passed      [3]           the same key was used with another request
--       [4, why]   refused by a rule of the shop; `why` is a name or {name = details}, see each script
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

local head = cmsgpack.unpack(ARGV[1])
local EPOCH, SEEN_SEQ, SEEN_TIP, TODAY, LOG_LIMIT = head[1], head[2], head[3], head[4], head[5]
local batch = cmsgpack.unpack(ARGV[2])

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
  if meta[6] ~= 'open' then return 'closed' end
  if not still_holds(LOG, epoch, seq, tip, SEEN_SEQ, SEEN_TIP) then return 'behind' end
  if seq - applied >= LOG_LIMIT then return 'backlog' end
  if math.floor(now / DAY_MS) ~= TODAY then return 'day' end
end

-- The distinct values at `column` of the bodies.
local function distinct(column)
  local seen, list = {}, {}
  for i = 1, #batch do
    local value = batch[i][3][column]
    if value and not seen[value] then
      seen[value] = true
      list[#list + 1] = value
    end
  end
  return list
end

-- The distinct users (second column of the bodies) of those requests that name a coupon at `column`.
local function users_with_coupon(column)
  local seen, list = {}, {}
  for i = 1, #batch do
    local body = batch[i][3]
    local user = body[2]
    if body[column] and not seen[user] then
      seen[user] = true
      list[#list + 1] = user
    end
  end
  return list
end

-- The distinct products of all orders in the batch, whose lines are the bodies' third column.
local function ordered_products()
  local seen, list = {}, {}
  for _, request in ipairs(batch) do
    for _, line in ipairs(request[3][3]) do
      if not seen[line[1]] then
        seen[line[1]] = true
        list[#list + 1] = line[1]
      end
    end
  end
  return list
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

-- One HMGET (or a few) for all names: name → value, absent ones left out.
local function fetch(key, names)
  local found = {}
  for first = 1, #names, ARGUMENTS_PER_CALL do
    local last = math.min(first + ARGUMENTS_PER_CALL - 1, #names)
    local values = redis.call('HMGET', key, unpack(names, first, last))
    for i = first, last do found[names[i]] = values[i - first + 1] or nil end
  end
  return found
end

-- One HSET (or a few) of name → value.
local function store(key, changed)
  local flat = {}
  for name, value in pairs(changed) do
    flat[#flat + 1] = name
    flat[#flat + 1] = value
    if #flat == ARGUMENTS_PER_CALL then
      redis.call('HSET', key, unpack(flat))
      flat = {}
    end
  end
  if #flat > 0 then redis.call('HSET', key, unpack(flat)) end
end

local LATE, KEY_REUSED = cmsgpack.pack({ 2 }), cmsgpack.pack({ 3 })
local facts = {} -- packed, in the order of acceptance
local records = {} -- new idempotency records: scope → [request hash, decided_at, fact]

-- Idempotency records of the batch's keys, as stored before it.
local stored = {}
local function fetch_records()
  local scopes = {}
  for i = 1, #batch do
    local key = batch[i][2]
    if key then scopes[#scopes + 1] = key[1] end
  end
  if #scopes == 0 then return end
  for scope, record in pairs(fetch(RECORDS_BEFORE, scopes)) do stored[scope] = cmsgpack.unpack(record) end
  for scope, record in pairs(fetch(RECORDS, scopes)) do stored[scope] = cmsgpack.unpack(record) end
end

-- MessagePack [tag, packed], put together without another table: this is done for each accepted request.
local function tagged(tag, packed)
  local length = #packed
  local mark = length < 32 and string.char(160 + length)
    or length < 256 and string.char(217, length)
    or length < 65536 and struct.pack('>BI2', 218, length)
    or struct.pack('>BI4', 219, length)
  return string.char(146, tag) .. mark .. packed
end

-- The verdict on a request that came too late or was answered before; nil: it is to be decided.
local function settled(request)
  if request[1] < time then return LATE end
  local key = request[2]
  if not key then return nil end
  local record = records[key[1]] or stored[key[1]]
  if not record or record[2] + DAY_MS <= now then return nil end
  if record[1] ~= key[2] then return KEY_REUSED end
  return tagged(1, record[3])
end

local function accept(key, fact)
  fact[#fact + 1] = key or NULL
  local packed = cmsgpack.pack(fact)
  facts[#facts + 1] = packed
  if key then records[key[1]] = { key[2], now, packed } end
  return tagged(0, packed)
end

-- A refusal that rests on `at` having passed must hold when the server's clock is set back: `at` is remembered.
local passed_at = 0
local function passed(at)
  passed_at = math.max(passed_at, at)
end

-- Writes the entry; false when the log is gone. The meta key is written last, by `close_entry`, so that an entry
-- beyond `meta.seq` tells that a script stopped half way.
local function write_entry(kind)
  local payload = cmsgpack.pack({ FORMAT_VERSION, kind, now, facts })
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
    for scope, record in pairs(records) do records[scope] = cmsgpack.pack(record) end
    store(RECORDS, records)
  end
  redis.call('HSET', META, 'seq', seq, 'tip', tip, 'clock', now)
end

-- decide(body) returns a refusal, or nil and the fact; write() makes the changes that `decide` has gathered.
local function run(kind, decide, write)
  fetch_records()
  local verdicts = {}
  for i = 1, #batch do
    local request = batch[i]
    local verdict = settled(request)
    if not verdict then
      local why, fact = decide(request[3])
      verdict = fact and accept(request[2], fact) or cmsgpack.pack({ 4, why })
    end
    verdicts[i] = verdict
  end
  if #facts > 0 then
    if not write_entry(kind) then return refuse('log-gone') end
    write()
    close_entry()
  elseif passed_at > clock then
    redis.call('HSET', META, 'clock', now)
  end
  return cmsgpack.pack({ decided = { verdicts, place() } })
end

local refusal = gate_refusal()
if refusal then return refuse(refusal) end
