-- Reads for the API (after `#!lua flags=no-writes` and lua/sight.lua), several in one call. Refused like a decision when
-- the caller's epoch is over, the cell is closed or Redis went back in time, so that an emptied or older gate is never
-- taken for the shop's state.
--
-- KEYS  1 meta · 2 log · 3 wallets · 4 products · 5 stocks · 6 product ids · 7 templates · 8 issued ·
--       9 template ids · 10 held · 11 template numbers
-- ARGV  1 MessagePack [epoch, highest seq seen, its tip]
--       2 MessagePack list of reads [name, …], each answered with what stands behind the arrow:
--         place                      → nil; for those who only want to know where the log stands
--         balance, user              → balance (text) or nil
--         products, [id, …]          → list of [id, packed product, stock]
--         list_products, after, n    → the same, ids above `after` ('' for all)
--         templates, [id, …]         → list of [id, packed template, issued]
--         list_templates, after, n   → the same
--         held, user                 → [the user's value in `held`, list of [id, packed template, issued] of these coupons]
-- Returns MessagePack {refused = [why, place]} or {decided = [answers (each packed), place]}; see lua/gate.lua.

local NULL = cjson.null
local COUPON_BYTES = 46 -- of one coupon in `held`, see src/gate/held.rs
local ARGUMENTS_PER_CALL = 4000 -- Lua can unpack some 8,000 values at once
local META, LOG, WALLETS, PRODUCTS, STOCKS, PRODUCT_IDS = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local TEMPLATES, ISSUED, TEMPLATE_IDS, HELD, TEMPLATE_NUMBERS = KEYS[7], KEYS[8], KEYS[9], KEYS[10], KEYS[11]
local head = cmsgpack.unpack(ARGV[1])
local reads = cmsgpack.unpack(ARGV[2])

local meta = redis.call('HMGET', META, 'epoch', 'seq', 'tip', 'applied', 'clock', 'state')
local epoch, seq, tip, applied = tonumber(meta[1]) or 0, tonumber(meta[2]) or 0, meta[3] or '', tonumber(meta[4]) or 0
local server_time = redis.call('TIME')
local time = server_time[1] * 1000 + math.floor(server_time[2] / 1000)
local place = { epoch, seq, tip, applied, math.max(tonumber(meta[5]) or 0, time), time }

local why = (not meta[1] and 'absent') or (epoch ~= head[1] and 'epoch') or (meta[6] ~= 'open' and 'closed')
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

local function described(ids, bodies_key, counts_key)
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

local function held(user)
  local coupons, seen, marks, ids = redis.call('HGET', HELD, user) or '', {}, {}, {}
  for at = 1, #coupons, COUPON_BYTES do
    local mark = string.sub(coupons, at, at + 3)
    if not seen[mark] then seen[mark], marks[#marks + 1] = true, mark end
  end
  for _, id in ipairs(fetch(TEMPLATE_NUMBERS, marks)) do
    if id then ids[#ids + 1] = id end
  end
  return { coupons, described(ids, TEMPLATES, ISSUED) }
end

local answer_to = {
  place = function() return NULL end,
  balance = function(read) return redis.call('HGET', WALLETS, read[2]) or NULL end,
  products = function(read) return described(read[2], PRODUCTS, STOCKS) end,
  list_products = function(read) return described(above(PRODUCT_IDS, read[2], read[3]), PRODUCTS, STOCKS) end,
  templates = function(read) return described(read[2], TEMPLATES, ISSUED) end,
  list_templates = function(read) return described(above(TEMPLATE_IDS, read[2], read[3]), TEMPLATES, ISSUED) end,
  held = function(read) return held(read[2]) end,
}

local answers = {}
for i, read in ipairs(reads) do answers[i] = cmsgpack.pack(answer_to[read[1]](read)) end
return cmsgpack.pack({ decided = { answers, place } })
