-- Creates or changes coupon templates. Templates are never deleted; `templates` of meta counts their
-- numbers. A coupon keeps the terms (discount, least subtotal) that it was issued with: when terms
-- change after coupons were issued with them, the new ones get a number of their own, and the old
-- ones stay in `terms`.
--
-- KEYS  5 templates · 6 issued · 7 template ids · 8 template numbers · 9 terms
-- body  [template, [name, discount type, value, max or nil, min subtotal, max issued, issue_from,
--        issue_until]]
-- fact  [template, number, [the terms as above], issued, created, put_at, idempotency], and if the
--        terms have another number than the template: that number
-- Refusals: {limit_below_issued = issued} · too_many_terms

local TEMPLATES, ISSUED, TEMPLATE_IDS = KEYS[5], KEYS[6], KEYS[7]
local TEMPLATE_NUMBERS, TERMS = KEYS[8], KEYS[9]
local MOST_TERMS = 200 -- of one template: issuing looks for coupons of each

local issued = load(ISSUED, distinct(1))
local templates = fetch(TEMPLATES, issued.names)
for at, packed in ipairs(templates) do templates[at] = packed and cmsgpack.unpack(packed) end
local count = tonumber(redis.call('HGET', META, 'templates')) or 0
-- a key of a wrong type must fail before anything is written
redis.call('ZCARD', TEMPLATE_IDS)
redis.call('HLEN', TEMPLATE_NUMBERS)
redis.call('HLEN', TERMS)
local changed, new_ids, new_numbers, old_terms = {}, {}, {}, {}

local function new_number(id)
  count = count + 1
  new_numbers[#new_numbers + 1] = struct.pack('>I4', count)
  new_numbers[#new_numbers + 1] = id
  return count
end

-- The record of a template that has (from 10 on): number of its present terms, the earlier numbers
-- (4 bytes each), coupons that were issued with earlier ones.
local function next_record(id, before, t, taken)
  local record = { before[1], t[1], t[2], t[3], t[4] or NULL, t[5], t[6], t[7], t[8] }
  local same = before[3] == t[2] and before[4] == t[3] and present(before[5]) == t[4] and before[6] == t[5]
  local number, earlier, issued_before = before[10] or before[1], before[11] or '', before[12] or 0
  if not same and taken > issued_before then
    if #earlier / 4 + 1 >= MOST_TERMS then return nil end
    local mark = struct.pack('>I4', number)
    old_terms[#old_terms + 1] = mark
    old_terms[#old_terms + 1] =
      cmsgpack.pack({ before[3], before[4], before[5] or NULL, before[6] })
    number, earlier, issued_before = new_number(id), earlier .. mark, taken
  end
  if number ~= before[1] then record[10], record[11], record[12] = number, earlier, issued_before end
  return record
end

local function decide(k, key)
  local id, t = batch[k + 1], batch[k + 2]
  local at = issued.place[id]
  local before, taken = templates[at], tonumber(issued.value[at]) or 0
  local created = not before
  if t[6] < taken then return { limit_below_issued = taken } end
  if created then
    before = { new_number(id) }
    issued.value[at], issued.changed[at] = 0, true
    new_ids[#new_ids + 1] = id
  end
  local record = next_record(id, before, t, taken)
  if not record then return 'too_many_terms' end
  templates[at], changed[at] = record, true
  local terms = { t[1], t[2], t[3], t[4] or NULL, t[5], t[6], t[7], t[8] }
  local fact = { id, record[1], terms, taken, created, now, key or NULL }
  if record[10] then
    needs_latest_format()
    fact[8] = record[10]
  end
  return nil, cmsgpack.pack(fact)
end

local function write()
  local flat = {}
  for at in pairs(changed) do
    flat[#flat + 1], flat[#flat + 2] = issued.names[at], cmsgpack.pack(templates[at])
  end
  put(TEMPLATES, flat)
  store(issued)
  put(TEMPLATE_NUMBERS, new_numbers)
  put(TERMS, old_terms)
  redis.call('HSET', META, 'templates', count)
  for _, id in ipairs(new_ids) do redis.call('ZADD', TEMPLATE_IDS, 0, id) end
end

return run('put_template', decide, write)
