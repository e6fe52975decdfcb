-- Places and pays orders: takes stock, balance and coupon, all or none.
--
-- KEYS  5 wallets · 6 products · 7 stocks · 8 coupons · 9 templates
-- body  [order id, user, lines [[product, quantity], …] (each product once), coupon id or nil, expected total or nil]
-- fact  [order id, user, lines [[product, name, unit price, quantity, amount, stock after], …], subtotal, discount,
--        total, coupon id or nil, balance after, ordered_at, idempotency]
-- Refusals: unknown_user · {unknown_product = id} · {not_on_sale = id} · {insufficient_stock = [id, available]} ·
--           unknown_coupon · coupon_used · {coupon_expired = ms} · {subtotal_too_low = [required, subtotal]} ·
--           {price_changed = total} · {insufficient_balance = [balance, total]}

local WALLETS, PRODUCTS, STOCKS, COUPONS, TEMPLATES = KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9]

local product_ids = ordered_products()
local products = fetch(PRODUCTS, product_ids)
for id, packed in pairs(products) do
  local p = cmsgpack.unpack(packed)
  products[id] = { name = p[1], price = p[2], on_sale = p[3] == 'on_sale' }
end
local stocks = fetch(STOCKS, product_ids)
local balances = fetch(WALLETS, distinct(2))
local coupons = fetch(COUPONS, distinct(4))

local template_names = {}
for id, packed in pairs(coupons) do
  coupons[id] = cmsgpack.unpack(packed)
  template_names[#template_names + 1] = coupons[id][1]
end
local templates = fetch(TEMPLATES, template_names)
for id, packed in pairs(templates) do
  local t = cmsgpack.unpack(packed)
  templates[id] = { kind = t[3], value = t[4], max = t[5], min_subtotal = t[6] }
end

local new_stocks, new_balances, new_coupons = {}, {}, {}

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

-- What the coupon takes off: a refusal, or nil and the discount.
local function discount_of(coupon_id, user, subtotal)
  if not coupon_id then return nil, 0 end
  local coupon = coupons[coupon_id]
  local template = coupon and templates[coupon[1]]
  if not template or coupon[2] ~= user then return 'unknown_coupon' end
  if coupon[5] then return 'coupon_used' end
  local expires_at = coupon[4] + COUPON_USABLE_MS
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
  return nil, math.min(discount, subtotal)
end

local function decide(body)
  local order_id, user, lines, coupon_id, expected_total = body[1], body[2], body[3], body[4], body[5]
  local balance = tonumber(balances[user])
  if not balance then return 'unknown_user' end
  local refused, priced, subtotal = price(lines)
  if refused then return refused end
  local coupon_refused, discount = discount_of(coupon_id, user, subtotal)
  if coupon_refused then return coupon_refused end
  local total = subtotal - discount
  if expected_total and expected_total ~= total then return { price_changed = total } end
  if balance < total then return { insufficient_balance = { balance, total } } end

  for _, line in ipairs(priced) do
    stocks[line[1]], new_stocks[line[1]] = line[6], line[6]
  end
  balances[user], new_balances[user] = balance - total, balance - total
  if coupon_id then
    local coupon = coupons[coupon_id]
    coupon[5] = order_id
    new_coupons[coupon_id] = cmsgpack.pack(coupon)
  end
  return nil, { order_id, user, priced, subtotal, discount, total, coupon_id or NULL, balance - total, now }
end

local function write()
  store(STOCKS, new_stocks)
  store(WALLETS, new_balances)
  store(COUPONS, new_coupons)
end

return run('place_order', decide, write)
