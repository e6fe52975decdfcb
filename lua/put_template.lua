-- Creates or changes coupon templates. Templates are never deleted; `number` counts them (field
-- `templates` of meta).
--
-- KEYS  5 templates · 6 issued · 7 template ids · 8 template numbers
-- body  [template, [name, discount type, value, max or nil, min subtotal, max issued, issue_from,
--        issue_until]]
-- fact  [template, number, [the terms as above], issued, created, put_at, idempotency]
-- Refusals: {limit_below_issued = issued}

local TEMPLATES, ISSUED, TEMPLATE_IDS, TEMPLATE_NUMBERS = KEYS[5], KEYS[6], KEYS[7], KEYS[8]

local issued = load(ISSUED, distinct(1))
local numbers = fetch(TEMPLATES, issued.names)
for at, packed in ipairs(numbers) do numbers[at] = packed and cmsgpack.unpack(packed)[1] end
local count = tonumber(redis.call('HGET', META, 'templates')) or 0
-- a key of a wrong type must fail before anything is written
redis.call('ZCARD', TEMPLATE_IDS)
redis.call('HLEN', TEMPLATE_NUMBERS)
local new_templates, new_ids, new_numbers = {}, {}, {}

local function decide(k, key)
  local id, t = batch[k + 1], batch[k + 2]
  local at = issued.place[id]
  local number, taken = numbers[at], tonumber(issued.value[at]) or 0
  local created = not number
  if t[6] < taken then return { limit_below_issued = taken } end
  if created then
    count = count + 1
    number = count
    numbers[at] = number
    issued.value[at], issued.changed[at] = 0, true
    new_ids[#new_ids + 1] = id
    new_numbers[#new_numbers + 1] = struct.pack('>I4', number)
    new_numbers[#new_numbers + 1] = id
  end
  new_templates[#new_templates + 1] = id
  new_templates[#new_templates + 1] =
    cmsgpack.pack({ number, t[1], t[2], t[3], t[4] or NULL, t[5], t[6], t[7], t[8] })
  local terms = { t[1], t[2], t[3], t[4] or NULL, t[5], t[6], t[7], t[8] }
  return nil, cmsgpack.pack({ id, number, terms, taken, created, now, key or NULL })
end

local function write()
  put(TEMPLATES, new_templates)
  store(issued)
  put(TEMPLATE_NUMBERS, new_numbers)
  redis.call('HSET', META, 'templates', count)
  for _, id in ipairs(new_ids) do redis.call('ZADD', TEMPLATE_IDS, 0, id) end
end

return run('put_template', decide, write)
