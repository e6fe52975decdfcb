-- Places and pays orders: takes stock, balance and coupon, all or none.
--
-- KEYS  5 wallets · 6 products · 7 stocks · 8 held · 9 template numbers · 10 templates
-- body  [order id, user, lines [[product, quantity], …] (each product once), coupon id or nil, expected total or nil]
-- fact  [order id, user, lines [[product, name, unit price, quantity, amount, stock after], …], subtotal, discount,
--        total, coupon id or nil, balance after, ordered_at, idempotency]
-- Refusals: unknown_user · {unknown_product = id} · {not_on_sale = id} · {insufficient_stock = [id, available]} ·
--           unknown_coupon · coupon_used · {coupon_expired = ms} · {subtotal_too_low = [required, subtotal]} ·
--           {price_changed = total} · {insufficient_balance = [balance, total]}

local WALLETS, PRODUCTS, STOCKS = KEYS[5], KEYS[6], KEYS[7]
local HELD, TEMPLATE_NUMBERS, TEMPLATES = KEYS[8], KEYS[9], KEYS[10]

local product_ids = ordered_products()
local products = fetch(PRODUCTS, product_ids)
for id, packed in pairs(products) do
  local p = cmsgpack.unpack(packed)
  products[id] = { name = p[1], price = p[2], on_sale = p[3] == 'on_sale' }
end
local stocks = fetch(STOCKS, product_ids)
local balances = fetch(WALLETS, distinct(2))
local held = fetch(HELD, users_with_coupon(4))

-- The terms of the coupons that are named in the batch, by their template's number.
local function named_terms()
  local marks, terms = {}, {}
  for _, request in ipairs(batch) do
    local user, coupon_id = request[3][2], request[3][4]
    local coupons = coupon_id and held[user]
    local at = coupons and coupon_at(coupons, coupon_id, 4)
    if at then marks[string.sub(coupons, at, at + 3)] = true end
  end
  local names = {}
  for mark in pairs(marks) do names[#names + 1] = mark end
  local ids = fetch(TEMPLATE_NUMBERS, names)
  local wanted = {}
  for _, id in pairs(ids) do wanted[#wanted + 1] = id end
  local templates = fetch(TEMPLATES, wanted)
  for mark, id in pairs(ids) do
    local t = templates[id] and cmsgpack.unpack(templates[id])
    terms[mark] = t and { kind = t[3], value = t[4], max = t[5], min_subtotal = t[6] }
  end
  return terms
end

local terms = named_terms()
local new_stocks, new_balances, new_held = {}, {}, {}

-- Prices the lines: a refusal, or nil, the fact's lines and the subtotal.
local function price(lines)
  local priced, subtotal = {}, 0
  for i, line in ipairs(lines) do
    local id, quantity = line[1], line[2]
    local product, stock = products[id], tonumber(stocks[id])
    if not product or not stock then return { unknown_product = id } end
    if not product.on_sale then return { not_on_sale = id } end
    if stock < quantity then return { insufficient_stock = { id, stock } } end
    local amount = product.price * quantity
    subtotal = subtotal + amount
    priced[i] = { id, product.name, product.price, quantity, amount, stock - quantity }
  end
  return nil, priced, subtotal
end

-- What the coupon takes off: a refusal, or nil, the discount and where the coupon stands among the user's. Somebody
-- else's coupon is not there.
local function discount_of(coupon_id, user, subtotal)
  if not coupon_id then return nil, 0 end
  local coupons = held[user] or ''
  local at = coupon_at(coupons, coupon_id, 4)
  if not at then return 'unknown_coupon' end
  local mark, issued_at, used_by = coupon_parts(coupons, at)
  local template = terms[mark]
  if not template then return 'unknown_coupon' end
  if used_by ~= UNUSED then return 'coupon_used' end
  local expires_at = issued_at + COUPON_USABLE_MS
  if now >= expires_at then
    passed(expires_at)
    return { coupon_expired = expires_at }
  end
  if subtotal < template.min_subtotal then return { subtotal_too_low = { template.min_subtotal, subtotal } } end
  local discount = template.value
  if template.kind == 'percent' then
    discount = math.floor(subtotal * template.value / 100)
    if template.max then discount = math.min(discount, template.max) end
  end
  return nil, math.min(discount, subtotal), at
end

local function decide(body)
  local order_id, user, lines, coupon_id, expected_total = body[1], body[2], body[3], body[4], body[5]
  local balance = tonumber(balances[user])
  if not balance then return 'unknown_user' end
  local refused, priced, subtotal = price(lines)
  if refused then return refused end
  local coupon_refused, discount, place = discount_of(coupon_id, user, subtotal)
  if coupon_refused then return coupon_refused end
  local total = subtotal - discount
  if expected_total and expected_total ~= total then return { price_changed = total } end
  if balance < total then return { insufficient_balance = { balance, total } } end

  for _, line in ipairs(priced) do
    stocks[line[1]], new_stocks[line[1]] = line[6], line[6]
  end
  balances[user], new_balances[user] = balance - total, balance - total
  if place then
    held[user] = coupon_used_by(held[user], place, order_id)
    new_held[user] = held[user]
  end
  return nil, { order_id, user, priced, subtotal, discount, total, coupon_id or NULL, balance - total, now }
end

local function write()
  store(STOCKS, new_stocks)
  store(WALLETS, new_balances)
  store(HELD, new_held)
end

return run('place_order', decide, write)
