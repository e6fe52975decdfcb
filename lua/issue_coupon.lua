-- Issues coupons, first come, first served, once per user and template.
--
-- KEYS  5 templates · 6 issued · 7 held
-- body  [template, user, new coupon id]
-- fact  [coupon id, template, user, serial, remaining, issued_at, expires_at, idempotency], and if
--        its terms have another number than the template: that number
-- Refusals: unknown_template · {already_issued = coupon id} · {not_open_before = ms} ·
--           {closed_since = ms} · sold_out

local TEMPLATES, ISSUED, HELD = KEYS[5], KEYS[6], KEYS[7]

local issued = load(ISSUED, distinct(1))
local held = load_held(HELD)
local templates = fetch(TEMPLATES, issued.names)
for at, packed in ipairs(templates) do
  local t = packed and cmsgpack.unpack(packed)
  templates[at] = t and {
    mark = struct.pack('>I4', t[10] or t[1]), max_issued = t[7], from = t[8], till = t[9],
    later_terms = t[10], earlier_marks = t[11],
    packed = packed_text(issued.names[at]),
  }
end
local issued_of, held_of = issued.value, held.value
local DATES = NOW .. packed_number(now + COUPON_USABLE_MS)
local REST = struct.pack('>I6', now) .. UNUSED

-- Where the user's coupon of the template begins, whichever terms it was issued with.
local function coupon_of(coupons, template)
  local at, earlier = coupon_at(coupons, template.mark, 0), template.earlier_marks
  if at or not earlier then return at end
  for i = 1, #earlier, 4 do
    at = coupon_at(coupons, string.sub(earlier, i, i + 3), 0)
    if at then return at end
  end
end

local function decide(k, key)
  local template_at, user, coupon_id = issued.place[batch[k + 1]], batch[k + 2], batch[k + 3]
  local template = templates[template_at]
  if not template then return 'unknown_template' end
  local held_at = held.place[user]
  local coupons = held_of[held_at]
  local holds = coupons and coupon_of(coupons, template)
  if holds then return { already_issued = string.sub(coupons, holds + 4, holds + 19) } end
  if now < template.from then return { not_open_before = template.from } end
  if now >= template.till then
    passed(template.till)
    return { closed_since = template.till }
  end
  local serial = (tonumber(issued_of[template_at]) or 0) + 1
  if serial > template.max_issued then return 'sold_out' end

  issued_of[template_at], issued.changed[template_at] = serial, true
  local packed_serial = struct.pack('>I4', serial)
  held_of[held_at] = (coupons or '') .. template.mark .. coupon_id .. packed_serial .. REST
  held.changed[held_at] = true
  if template.later_terms then needs_latest_format() end
  return nil, (template.later_terms and '\153' or '\152') .. ID .. coupon_id .. template.packed .. text_mark(#user) .. user
    .. '\206' .. packed_serial .. '\206' .. struct.pack('>I4', template.max_issued - serial)
    .. DATES .. packed_key(key) .. (template.later_terms and packed_number(template.later_terms) or '')
end

local function write()
  store(issued)
  store(held)
end

return run('issue_coupon', decide, write)
