-- Places and pays orders: takes stock, balance and coupon, all or none. A user without a wallet has
-- balance 0. An order with the total 0 creates the wallet, so that the ledger has its payment and a
-- cancellation finds the wallet.
--
-- KEYS  5 wallets · 6 products · 7 stocks · 8 held · 9 template numbers · 10 templates
-- body  [order id, user, lines [product, quantity, product, …] (each product once),
--        coupon id or nil, expected total or nil]
-- fact  [order id, user, lines [[product, name, unit price, quantity, amount, stock after], …],
--        subtotal, discount, total, coupon id or nil, balance after, ordered_at, idempotency]
-- Refusals: {unknown_product = id} · {not_on_sale = id} · {insufficient_stock = [id, available]} ·
--           unknown_coupon · coupon_used · {coupon_expired = ms} ·
--           {subtotal_too_low = [required, subtotal]} ·
--           {price_changed = total} · {insufficient_balance = [balance, total]}

local WALLETS, PRODUCTS, STOCKS = KEYS[5], KEYS[6], KEYS[7]
local HELD, TEMPLATE_NUMBERS, TEMPLATES = KEYS[8], KEYS[9], KEYS[10]

local stocks = load(STOCKS, ordered_products())
local wallets = load(WALLETS, distinct(2))
local held = load_held(HELD, 4)
local products = fetch(PRODUCTS, stocks.names)
for at, packed in ipairs(products) do
  local p = packed and cmsgpack.unpack(packed)
  products[at] = p and {
    price = p[2], on_sale = p[3] == 'on_sale',
    packed = packed_text(stocks.names[at]) .. packed_text(p[1]) .. packed_number(p[2]),
  }
end

-- The terms of the coupons that the batch names, by their template's number.
local function named_terms()
  local seen, numbers, terms = {}, {}, {}
  for k = 2, LAST, STEP do
    local user, coupon_id = batch[k + 2], batch[k + 4]
    local coupons = coupon_id and not later[k] and held.value[held.place[user]]
    local at = coupons and coupon_at(coupons, coupon_id, 4)
    local mark = at and coupon_mark(coupons, at)
    if mark and not seen[mark] then seen[mark], numbers[#numbers + 1] = true, mark end
  end
  local ids, known = fetch(TEMPLATE_NUMBERS, numbers), {}
  for _, id in ipairs(ids) do known[#known + 1] = id or '' end
  for i, packed in ipairs(fetch(TEMPLATES, known)) do
    local t = packed and cmsgpack.unpack(packed)
    terms[numbers[i]] = t and { kind = t[3], value = t[4], max = t[5], min_subtotal = t[6] }
  end
  return terms
end

local terms = named_terms()
-- Of the order that `decide` works on: the places of its products in `stocks`, and what would be
-- left of each.
local places, left = {}, {}

-- Prices the lines: a refusal; or nil, the fact's lines (packed) and the subtotal.
local function price(lines)
  local packed, subtotal = list_mark(#lines / 2), 0
  for i = 1, #lines, 2 do
    local id, quantity = lines[i], lines[i + 1]
    local at = stocks.place[id]
    local product, stock = products[at], tonumber(stocks.value[at])
    if not product or not stock then return { unknown_product = id } end
    if not product.on_sale then return { not_on_sale = id } end
    if stock < quantity then return { insufficient_stock = { id, stock } } end
    local amount = product.price * quantity
    subtotal = subtotal + amount
    places[i], left[i] = at, stock - quantity
    packed = packed .. '\150' .. product.packed .. packed_number(quantity) .. packed_number(amount)
      .. packed_number(left[i])
  end
  return nil, packed, subtotal
end

-- What the coupon takes off: a refusal; or nil, the discount, and where the coupon begins in the
-- user's value, which does not hold other users' coupons.
local function discount_of(coupon_id, coupons, subtotal)
  if not coupon_id then return nil, 0 end
  coupons = coupons or ''
  local at = coupon_at(coupons, coupon_id, 4)
  if not at then return 'unknown_coupon' end
  local template = terms[coupon_mark(coupons, at)]
  if not template then return 'unknown_coupon' end
  if coupon_order(coupons, at) ~= UNUSED then return 'coupon_used' end
  local expires_at = coupon_issued_at(coupons, at) + COUPON_USABLE_MS
  if now >= expires_at then
    passed(expires_at)
    return { coupon_expired = expires_at }
  end
  if subtotal < template.min_subtotal then
    return { subtotal_too_low = { template.min_subtotal, subtotal } }
  end
  local discount = template.value
  if template.kind == 'percent' then
    discount = math.floor(subtotal * template.value / 100)
    if template.max then discount = math.min(discount, template.max) end
  end
  return nil, math.min(discount, subtotal), at
end

local function decide(k, key)
  local order_id, user, lines = batch[k + 1], batch[k + 2], batch[k + 3]
  local coupon_id, expected_total = batch[k + 4], batch[k + 5]
  local wallet_at, held_at = wallets.place[user], held.place[user]
  local balance = tonumber(wallets.value[wallet_at]) or 0
  local refused, priced, subtotal = price(lines)
  if refused then return refused end
  local coupons = held_at and held.value[held_at]
  local coupon_refused, discount, place = discount_of(coupon_id, coupons, subtotal)
  if coupon_refused then return coupon_refused end
  local total = subtotal - discount
  if expected_total and expected_total ~= total then return { price_changed = total } end
  if balance < total then return { insufficient_balance = { balance, total } } end

  for i = 1, #lines, 2 do
    local at = places[i]
    stocks.value[at], stocks.changed[at] = left[i], true
  end
  wallets.value[wallet_at], wallets.changed[wallet_at] = balance - total, true
  if place then
    held.value[held_at], held.changed[held_at] = coupon_used_by(coupons, place, order_id), true
  end
  return nil, '\154' .. ID .. order_id .. text_mark(#user) .. user .. priced
    .. packed_number(subtotal) .. packed_number(discount) .. packed_number(total)
    .. (coupon_id and ID .. coupon_id or NIL)
    .. packed_number(balance - total) .. NOW .. packed_key(key)
end

local function write()
  store(stocks)
  store(wallets)
  store(held)
end

return run('place_order', decide, write)
