-- Reads for the API, several in one call (after `#!lua flags=no-writes` and files of lua/shared/).
-- Refused like a decision when the caller's epoch is over, the cell is closed or Redis went back in
-- time: an emptied or older gate must never be taken for the shop's state.
--
-- KEYS  1 meta · 2 log · 3 wallets · 4 products · 5 stocks · 6 product ids · 7 templates ·
--       8 issued · 9 template ids · 10 held · 11 template numbers · 12 terms · 13 attributes ·
--       14 purchases · 15 pending users · 16 pending · 17 pending due
-- ARGV  1 MessagePack [epoch, highest seq seen, its tip, run id of the server that is the gate
--         (nil: any)]
--       2 MessagePack list of reads [name, …], each answered with what stands behind the arrow:
--         place                      → nil: the caller only wants to know where the log stands
--         balance, user              → balance (text) or nil
--         products, [id, …]          → list of [id, packed product, stock, and if it has rules or
--                                      attributes: phase of its sale (nil, `scheduled`, `ended`),
--                                      attributes or nil]
--         list_products, after, n    → the same, ids above `after` ('' for all)
--         templates, [id, …]         → list of [id, packed template, issued]
--         list_templates, after, n   → the same
--         watched, [product id, …], [template id, …] → [now, as for products without attributes,
--                                      as for templates]
--         held, user, status, n, after → up to n of the user's coupons in this status now ('' for
--           any), newest first (of one millisecond: highest id first), after the one with this id
--           ('' for all): [now, their elements of `held`, list of [number of terms, id, packed
--           template, packed terms or nil: the template's present ones, issued] of these coupons,
--           where to go on: the id of the last coupon that was looked at, nil when there are no
--           more]; nil: `after` is none of the user's
--         coupon, user, id            → [now, the coupon's element of `held`, the rows of its terms as
--                                      above, nil]; nil: the user does not hold it
--         terms, id, number or nil    → packed terms of a template, by their number or the template's
--                                      own; nil: there are none
--         bought, user, [limit number, …] → list of the pieces that the user has bought under each
--         pending, user               → number of the user's pending orders
--         due, n                      → up to n [order, packed order] whose holds are over, the
--                                      earliest first
-- Returns MessagePack {refused = [why, place]} or {decided = [answers (each packed), place]}; see
-- shared/gate.lua. The answer can be the byte 193, which is no MessagePack: the call had cost
-- enough before this read, send it again.

local LATER = '\193'
-- Apart from reads that cost next to nothing, a call ends after so many steps, each about a
-- microsecond …
local STEPS_PER_CALL = 3000
local STEPS_PER_ROW = 4
local STEPS_PER_COUPON = 2
local BYTES_PER_STEP = 4096
-- … and goes through so many of a user's coupons for one read.
local COUPONS_PER_READ = 1000
local WALLETS, PRODUCTS, STOCKS, PRODUCT_IDS = KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local TEMPLATES, ISSUED, TEMPLATE_IDS = KEYS[7], KEYS[8], KEYS[9]
local HELD, TEMPLATE_NUMBERS, TERMS, ATTRIBUTES = KEYS[10], KEYS[11], KEYS[12], KEYS[13]
local PURCHASES, PENDING_USERS, PENDING, PENDING_DUE = KEYS[14], KEYS[15], KEYS[16], KEYS[17]
local reads = cmsgpack.unpack(ARGV[2])

local refusal = cell_refusal(head[4]) or (is_behind() and 'behind')
if refusal then return refuse(refusal) end

local steps = 0 -- that this call has cost

local function described(ids, bodies_key, counts_key)
  steps = steps + STEPS_PER_ROW * #ids
  local answer, bodies, counts = {}, fetch(bodies_key, ids), fetch(counts_key, ids)
  for i, id in ipairs(ids) do
    if bodies[i] then answer[#answer + 1] = { id, bodies[i], tonumber(counts[i]) or 0 } end
  end
  return answer
end

-- Whether the sale of a product with rules is to come or over. (Equal answers must be equal bytes, so
-- they do not carry the time.)
local function sale_phase(packed)
  local p = cmsgpack.unpack(packed)
  if p[4] and now < p[4] then return 'scheduled' end
  if p[5] and now >= p[5] then return 'ended' end
  return NULL
end

local WITH_RULES = 151 -- the mark of a list of seven

local function phased_products(ids)
  local rows = described(ids, PRODUCTS, STOCKS)
  for _, row in ipairs(rows) do
    if string.byte(row[2]) == WITH_RULES then row[4], row[5] = sale_phase(row[2]), NULL end
  end
  return rows
end

local function products_of(ids)
  local rows, known = phased_products(ids), {}
  if redis.call('HLEN', ATTRIBUTES) == 0 then return rows end
  for at, row in ipairs(rows) do known[at] = row[1] end
  for at, attributes in ipairs(fetch(ATTRIBUTES, known)) do
    if attributes then
      rows[at][4], rows[at][5] = rows[at][4] or NULL, attributes
      steps = steps + #attributes / BYTES_PER_STEP
    end
  end
  return rows
end

local function above(ids_key, after, limit)
  local from = after == '' and '-' or '(' .. after
  return redis.call('ZRANGE', ids_key, from, '+', 'BYLEX', 'LIMIT', 0, limit)
end

-- The terms with this mark, if they are not the template's present ones.
local function earlier_terms(template, mark)
  local t = cmsgpack.unpack(template)
  if struct.pack('>I4', t[10] or t[1]) == mark then return NULL end
  return redis.call('HGET', TERMS, mark) or NULL
end

-- The templates and terms of these elements of `held`.
local function templates_of(elements)
  local seen, marks = {}, {}
  for _, element in ipairs(elements) do
    local mark = coupon_mark(element, 1)
    if not seen[mark] then seen[mark], marks[#marks + 1] = true, mark end
  end
  local rows = {}
  for at, id in ipairs(fetch(TEMPLATE_NUMBERS, marks)) do
    local template = id and described({ id }, TEMPLATES, ISSUED)[1]
    if template then
      local mark = marks[at]
      rows[#rows + 1] = {
        (struct.unpack('>I4', mark)), id, template[2], earlier_terms(template[2], mark), template[3],
      }
    end
  end
  return rows
end

local function coupon(user, id)
  local coupons = redis.call('HGET', HELD, user) or ''
  steps = steps + #coupons / BYTES_PER_STEP
  local at = coupon_at(coupons, id, 4)
  if not at then return NULL end
  local element = string.sub(coupons, at, at + COUPON_BYTES - 1)
  return { now, element, templates_of({ element }), NULL }
end

local function terms(id, number)
  local template = redis.call('HGET', TEMPLATES, id)
  if not template then return NULL end
  local t = cmsgpack.unpack(template)
  local wanted = present(number) or t[1]
  if wanted == (t[10] or t[1]) then return cmsgpack.pack({ t[3], t[4], t[5] or NULL, t[6] }) end
  return redis.call('HGET', TERMS, struct.pack('>I4', wanted)) or NULL
end

local function bought(user, numbers)
  local fields, pieces = {}, {}
  for at, number in ipairs(numbers) do fields[at] = struct.pack('>I4', number) .. user end
  for at, count in ipairs(fetch(PURCHASES, fields)) do pieces[at] = tonumber(count) or 0 end
  return pieces
end

local function due(most)
  local ids = redis.call('ZRANGE', PENDING_DUE, '-inf', string.format('%d', now), 'BYSCORE', 'LIMIT', 0, most)
  local orders = {}
  for at, packed in ipairs(fetch(PENDING, ids)) do
    if packed then orders[#orders + 1] = { ids[at], packed } end
  end
  steps = steps + STEPS_PER_ROW * #ids
  return orders
end

local function has_status(element, status)
  if status == '' then return true end
  local used = coupon_order(element, 1) ~= UNUSED
  if status == 'used' or used then return used and status == 'used' end
  return (coupon_issued_at(element, 1) + COUPON_USABLE_MS <= now) == (status == 'expired')
end

local function by_id(a, b)
  return string.sub(a, 5, 20) > string.sub(b, 5, 20)
end

-- Coupons are stored oldest first; those of one millisecond (a group) in the order of issue, which
-- a rebuild does not know.
local function held(user, status, most, after)
  local coupons = redis.call('HGET', HELD, user) or ''
  local rest = #coupons % COUPON_BYTES
  if rest > 0 then return { now, string.sub(coupons, -rest), {}, NULL } end -- no list of coupons
  local at, after_at = #coupons - COUPON_BYTES + 1, nil
  if after ~= '' then
    after_at = coupon_at(coupons, after, 4)
    if not after_at then return NULL end
    at = after_at
    local moment = coupon_issued_at(coupons, after_at)
    while at + COUPON_BYTES < #coupons and coupon_issued_at(coupons, at + COUPON_BYTES) == moment do
      at = at + COUPON_BYTES
    end
  end
  local after_moment = after_at and coupon_issued_at(coupons, after_at)
  local found, looked_at, last = {}, 0, nil
  while at > 0 and #found < most and looked_at < COUPONS_PER_READ do
    local moment, group = coupon_issued_at(coupons, at), {}
    while at > 0 and coupon_issued_at(coupons, at) == moment do
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
  return { now, table.concat(found), templates_of(found), go_on }
end

local answer_to = {
  place = function() return NULL end,
  balance = function(read) return redis.call('HGET', WALLETS, read[2]) or NULL end,
  products = function(read) return products_of(read[2]) end,
  list_products = function(read)
    return products_of(above(PRODUCT_IDS, read[2], read[3]))
  end,
  templates = function(read) return described(read[2], TEMPLATES, ISSUED) end,
  list_templates = function(read)
    return described(above(TEMPLATE_IDS, read[2], read[3]), TEMPLATES, ISSUED)
  end,
  watched = function(read)
    return { now, phased_products(read[2]), described(read[3], TEMPLATES, ISSUED) }
  end,
  held = function(read) return held(read[2], read[3], read[4], read[5]) end,
  coupon = function(read) return coupon(read[2], read[3]) end,
  terms = function(read) return terms(read[2], read[3]) end,
  bought = function(read) return bought(read[2], read[3]) end,
  pending = function(read)
    local held_orders = redis.call('HGET', PENDING_USERS, read[2])
    return tonumber(held_orders and string.match(held_orders, '^%d+')) or 0
  end,
  due = function(read) return due(read[2]) end,
}

-- Reads that cost next to nothing never wait for others.
local function is_small(read)
  if read[1] == 'balance' or read[1] == 'place' then return true end
  return type(read[2]) == 'table' and #read[2] + #(read[3] or '') <= 4
end

local answers = {}
for i, read in ipairs(reads) do
  if steps < STEPS_PER_CALL or is_small(read) then
    answers[i] = cmsgpack.pack(answer_to[read[1]](read))
  else
    answers[i] = LATER
  end
end
return cmsgpack.pack({ decided = { answers, place() } })
