-- Issues coupons, first come, first served, once per user and template.
--
-- KEYS  5 templates · 6 issued · 7 held
-- body  [template, user, new coupon id]
-- fact  [coupon id, template, user, serial, remaining, issued_at, expires_at, idempotency]
-- Refusals: unknown_template · {already_issued = coupon id} · {not_open_before = ms} · {closed_since = ms} · sold_out

local TEMPLATES, ISSUED, HELD = KEYS[5], KEYS[6], KEYS[7]

local template_ids = distinct(1)
local templates = fetch(TEMPLATES, template_ids)
for id, packed in pairs(templates) do
  local t = cmsgpack.unpack(packed)
  templates[id] = { mark = struct.pack('>I4', t[1]), max_issued = t[7], from = t[8], till = t[9] }
end
local issued = fetch(ISSUED, template_ids)
local held = fetch(HELD, distinct(2))
local new_issued, new_held = {}, {}

local function decide(body)
  local id, user, coupon_id = body[1], body[2], body[3]
  local template = templates[id]
  if not template then return 'unknown_template' end
  local coupons = held[user] or ''
  local holds = coupon_at(coupons, template.mark, 0)
  if holds then return { already_issued = string.sub(coupons, holds + 4, holds + 19) } end
  if now < template.from then return { not_open_before = template.from } end
  if now >= template.till then
    passed(template.till)
    return { closed_since = template.till }
  end
  local serial = (tonumber(issued[id]) or 0) + 1
  if serial > template.max_issued then return 'sold_out' end

  issued[id], new_issued[id] = serial, serial
  held[user] = coupons .. template.mark .. coupon_id .. struct.pack('>I4I6', serial, now) .. UNUSED
  new_held[user] = held[user]
  return nil, { coupon_id, id, user, serial, template.max_issued - serial, now, now + COUPON_USABLE_MS }
end

local function write()
  store(ISSUED, new_issued)
  store(HELD, new_held)
end

return run('issue_coupon', decide, write)
