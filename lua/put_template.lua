-- Creates or changes coupon templates. Templates are never deleted; `number` counts them (`templates` of meta).
--
-- KEYS  5 templates · 6 issued · 7 template ids · 8 template numbers
-- body  [template, [name, discount type, value, max or nil, min subtotal, max issued, issue_from, issue_until]]
-- fact  [template, number, [the terms as above], issued, created, put_at, idempotency]
-- Refusals: {limit_below_issued = issued}

local TEMPLATES, ISSUED, TEMPLATE_IDS, TEMPLATE_NUMBERS = KEYS[5], KEYS[6], KEYS[7], KEYS[8]

local ids = distinct(1)
local numbers = fetch(TEMPLATES, ids)
for id, packed in pairs(numbers) do numbers[id] = cmsgpack.unpack(packed)[1] end
local issued = fetch(ISSUED, ids)
local count = tonumber(redis.call('HGET', META, 'templates')) or 0
-- keys of a wrong type must fail before anything is written
redis.call('ZCARD', TEMPLATE_IDS)
redis.call('HLEN', TEMPLATE_NUMBERS)
local new_templates, new_issued, new_ids, new_numbers = {}, {}, {}, {}

local function decide(body)
  local id, t = body[1], body[2]
  local number, taken = numbers[id], tonumber(issued[id]) or 0
  local created = not number
  if t[6] < taken then return { limit_below_issued = taken } end
  if created then
    count = count + 1
    number = count
    numbers[id], issued[id], new_issued[id] = number, 0, 0
    new_ids[#new_ids + 1], new_numbers[struct.pack('>I4', number)] = id, id
  end
  new_templates[id] = cmsgpack.pack({ number, t[1], t[2], t[3], t[4] or NULL, t[5], t[6], t[7], t[8] })
  return nil, { id, number, { t[1], t[2], t[3], t[4] or NULL, t[5], t[6], t[7], t[8] }, taken, created, now }
end

local function write()
  store(TEMPLATES, new_templates)
  store(ISSUED, new_issued)
  store(TEMPLATE_NUMBERS, new_numbers)
  redis.call('HSET', META, 'templates', count)
  for _, id in ipairs(new_ids) do redis.call('ZADD', TEMPLATE_IDS, 0, id) end
end

return run('put_template', decide, write)
