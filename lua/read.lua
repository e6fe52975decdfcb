-- Reads for the API (after `#!lua flags=no-writes` and lua/sight.lua), several in one call. Refused like a decision when
-- the caller's epoch is over, the cell is closed or Redis went back in time, so that an emptied or older gate is never
-- taken for the shop's state.
--
-- KEYS  1 meta · 2 log · 3 wallets · 4 products · 5 stocks · 6 product ids · 7 templates · 8 issued ·
--       9 template ids · 10 held · 11 coupons
-- ARGV  1 MessagePack [epoch, highest seq seen, its tip]
--       2 MessagePack list of reads [name, …], each answered with what stands behind the arrow:
--         place                      → nil; for those who only want to know where the log stands
--         balance, user              → balance (text) or nil
--         products, [id, …]          → list of [id, packed product, stock]
--         list_products, after, n    → the same, ids above `after` ('' for all)
--         templates, [id, …]         → list of [id, packed template, issued]
--         list_templates, after, n   → the same
--         held, user                 → list of [coupon id, packed coupon, packed template, issued], oldest first
-- Returns MessagePack {refused = [why, place]} or {decided = [answers (each packed), place]}; see lua/gate.lua.

local NULL = cjson.null
local META, LOG, WALLETS, PRODUCTS, STOCKS, PRODUCT_IDS = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local TEMPLATES, ISSUED, TEMPLATE_IDS, HELD, COUPONS = KEYS[7], KEYS[8], KEYS[9], KEYS[10], KEYS[11]
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

local function described(ids, bodies_key, counts_key)
  local answer = {}
  if #ids == 0 then return answer end
  local bodies = redis.call('HMGET', bodies_key, unpack(ids))
  local counts = redis.call('HMGET', counts_key, unpack(ids))
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
  local records, answer = redis.call('HGET', HELD, user) or '', {}
  for at = 1, #records, 20 do
    local id = string.sub(records, at + 4, at + 19)
    local coupon = redis.call('HGET', COUPONS, id)
    if coupon then
      local template = cmsgpack.unpack(coupon)[1]
      answer[#answer + 1] = {
        id, coupon, redis.call('HGET', TEMPLATES, template) or NULL, tonumber(redis.call('HGET', ISSUED, template)) or 0,
      }
    end
  end
  return answer
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
