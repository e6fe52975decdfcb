-- Reads for the API (after `#!lua flags=no-writes` and lua/sight.lua), several in one call. Refused like a decision when
-- the caller's epoch is over, the cell is closed or Redis went back in time, so that an emptied or older gate is never
-- taken for the shop's state.
--
-- KEYS  1 meta · 2 log · 3 wallets · 4 products · 5 stocks · 6 product ids · 7 templates · 8 issued ·
--       9 template ids · 10 held · 11 template numbers
-- ARGV  1 MessagePack [epoch, highest seq seen, its tip, run id of the server that is the gate (nil: any)]
--       2 MessagePack list of reads [name, …], each answered with what stands behind the arrow:
--         place                      → nil; for those who only want to know where the log stands
--         balance, user              → balance (text) or nil
--         products, [id, …]          → list of [id, packed product, stock]
--         list_products, after, n    → the same, ids above `after` ('' for all)
--         templates, [id, …]         → list of [id, packed template, issued]
--         list_templates, after, n   → the same
--         held, user, status, n, after → up to n of the user's coupons, newest first (of one millisecond: highest id first),
--                                      after the one with this id ('' for all), in this status now ('' for any):
--                                      [now, their elements of `held`, list of [id, packed template, issued] of these
--                                      coupons, where to go on: the id of the last coupon that was looked at, nil when
--                                      there are no more to look at]; nil: `after` is none of them
-- Returns MessagePack {refused = [why, place]} or {decided = [answers (each packed), place]}; see lua/gate.lua. An answer that
-- is the byte 193, which is no MessagePack: not read, to be asked again, since the call has cost enough before it.

local NULL = cjson.null
local COUPON_BYTES = 46 -- of one coupon in `held`, see src/gate/held.rs
local ARGUMENTS_PER_CALL = 4000 -- Lua can unpack some 8,000 values at once
local COUPON_USABLE_MS = 365 * 86400000
local UNUSED = string.rep('\0', 16) -- where a coupon's order stands
local LATER = '\193'
-- A call ends, but for reads that cost next to nothing, after so many steps, each about a microsecond …
local STEPS_PER_CALL = 3000
local STEPS_PER_ROW = 4
local STEPS_PER_COUPON = 2
local BYTES_PER_STEP = 4096
-- … and goes through so many of a user's coupons for one read.
local COUPONS_PER_READ = 1000
local META, LOG, WALLETS, PRODUCTS, STOCKS, PRODUCT_IDS = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local TEMPLATES, ISSUED, TEMPLATE_IDS, HELD, TEMPLATE_NUMBERS = KEYS[7], KEYS[8], KEYS[9], KEYS[10], KEYS[11]
local head = cmsgpack.unpack(ARGV[1])
local reads = cmsgpack.unpack(ARGV[2])

local meta = redis.call('HMGET', META, 'epoch', 'seq', 'tip', 'applied', 'clock', 'state')
local epoch, seq, tip, applied = tonumber(meta[1]) or 0, tonumber(meta[2]) or 0, meta[3] or '', tonumber(meta[4]) or 0
local server_time = redis.call('TIME')
local time = server_time[1] * 1000 + math.floor(server_time[2] / 1000)
local place = { epoch, seq, tip, applied, math.max(tonumber(meta[5]) or 0, time), time }

local why = (not meta[1] and 'absent') or (epoch ~= head[1] and 'epoch')
  or (head[4] and head[4] ~= server_id() and 'elsewhere') or (meta[6] ~= 'open' and 'closed')
  or (not still_holds(LOG, epoch, seq, tip, head[2], head[3]) and 'behind')
if why then return cmsgpack.pack({ refused = { why, place } }) end

-- One HMGET (or a few) for all names: their values in the same order, false for absent ones.
local function fetch(key, names)
  local found = {}
  for first = 1, #names, ARGUMENTS_PER_CALL do
    local last = math.min(first + ARGUMENTS_PER_CALL - 1, #names)
    local values = redis.call('HMGET', key, unpack(names, first, last))
    for i = first, last do found[i] = values[i - first + 1] end
  end
  return found
end

local steps = 0 -- that this call has cost

local function described(ids, bodies_key, counts_key)
  steps = steps + STEPS_PER_ROW * #ids
  local answer, bodies, counts = {}, fetch(bodies_key, ids), fetch(counts_key, ids)
  for i, id in ipairs(ids) do
    if bodies[i] then answer[#answer + 1] = { id, bodies[i], tonumber(counts[i]) or 0 } end
  end
  return answer
end

local function above(ids_key, after, limit)
  local from = after == '' and '-' or '(' .. after
  return redis.call('ZRANGE', ids_key, from, '+', 'BYLEX', 'LIMIT', 0, limit)
end

-- The templates of these elements of `held`.
local function templates_of(elements)
  local seen, marks, ids = {}, {}, {}
  for _, element in ipairs(elements) do
    local mark = string.sub(element, 1, 4)
    if not seen[mark] then seen[mark], marks[#marks + 1] = true, mark end
  end
  for _, id in ipairs(fetch(TEMPLATE_NUMBERS, marks)) do
    if id then ids[#ids + 1] = id end
  end
  return described(ids, TEMPLATES, ISSUED)
end

local function has_status(element, status)
  if status == '' then return true end
  local used = string.sub(element, 31, 46) ~= UNUSED
  if status == 'used' or used then return used and status == 'used' end
  return (struct.unpack('>I6', element, 25) + COUPON_USABLE_MS <= place[5]) == (status == 'expired')
end

-- Where the element with this id begins; nil: there is none.
local function element_of(coupons, id)
  local found = string.find(coupons, id, 1, true)
  while found and (found - 5) % COUPON_BYTES ~= 0 do found = string.find(coupons, id, found + 1, true) end
  return found and found - 4
end

local function issued_at(coupons, at)
  return string.sub(coupons, at + 24, at + 29)
end

local function by_id(a, b)
  return string.sub(a, 5, 20) > string.sub(b, 5, 20)
end

-- Coupons stand oldest first; those of one millisecond (a group) in the order of issue, which a rebuild does not know.
local function held(user, status, most, after)
  local coupons = redis.call('HGET', HELD, user) or ''
  local rest = #coupons % COUPON_BYTES
  if rest > 0 then return { place[5], string.sub(coupons, -rest), {}, NULL } end -- no list of coupons
  local at, after_at = #coupons - COUPON_BYTES + 1, nil
  if after ~= '' then
    after_at = element_of(coupons, after)
    if not after_at then return NULL end
    at = after_at
    while at + COUPON_BYTES < #coupons and issued_at(coupons, at + COUPON_BYTES) == issued_at(coupons, after_at) do
      at = at + COUPON_BYTES
    end
  end
  local after_moment = after_at and issued_at(coupons, after_at)
  local found, looked_at, last = {}, 0, nil
  while at > 0 and #found < most and looked_at < COUPONS_PER_READ do
    local moment, group = issued_at(coupons, at), {}
    while at > 0 and issued_at(coupons, at) == moment do
      group[#group + 1], at = string.sub(coupons, at, at + COUPON_BYTES - 1), at - COUPON_BYTES
    end
    if #group > 1 then table.sort(group, by_id) end
    for _, element in ipairs(group) do
      local id = string.sub(element, 5, 20)
      if #found < most and (moment ~= after_moment or id < after) then
        last, looked_at = id, looked_at + 1
        if has_status(element, status) then found[#found + 1] = element end
      end
    end
  end
  steps = steps + #coupons / BYTES_PER_STEP + STEPS_PER_COUPON * looked_at
  local go_on = at > 0 and last or NULL
  return { place[5], table.concat(found), templates_of(found), go_on }
end

local answer_to = {
  place = function() return NULL end,
  balance = function(read) return redis.call('HGET', WALLETS, read[2]) or NULL end,
  products = function(read) return described(read[2], PRODUCTS, STOCKS) end,
  list_products = function(read) return described(above(PRODUCT_IDS, read[2], read[3]), PRODUCTS, STOCKS) end,
  templates = function(read) return described(read[2], TEMPLATES, ISSUED) end,
  list_templates = function(read) return described(above(TEMPLATE_IDS, read[2], read[3]), TEMPLATES, ISSUED) end,
  held = function(read) return held(read[2], read[3], read[4], read[5]) end,
}

-- Reads that cost next to nothing never wait for others.
local function is_small(read)
  return read[1] == 'balance' or read[1] == 'place' or type(read[2]) == 'table' and #read[2] <= 4
end

local answers = {}
for i, read in ipairs(reads) do
  if steps < STEPS_PER_CALL or is_small(read) then
    answers[i] = cmsgpack.pack(answer_to[read[1]](read))
  else
    answers[i] = LATER
  end
end
return cmsgpack.pack({ decided = { answers, place } })
