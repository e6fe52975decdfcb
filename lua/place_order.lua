-- Places orders: takes stock, coupon, and what is paid from the wallet, all or none. An order that is
-- paid outside is pending until it is confirmed or its hold ends, unless nothing is due.
--
-- A user without a wallet has balance 0. An order that is paid from the wallet creates it even if the
-- total is 0, so that the ledger has its payment and a cancellation finds the wallet.
--
-- KEYS  5 wallets · 6 products · 7 stocks · 8 held · 9 template numbers · 10 templates · 11 terms ·
--       12 purchases · 13 pending · 14 pending due · 15 pending users
-- body  [order id, user, lines [product, quantity, product, …] (each product once),
--        coupon id or nil, expected total or nil,
--        nil or [reference or nil, nil (paid from the wallet) or [won to take from the wallet, ms of
--        the hold, most pending orders of a user]]]
-- fact  [order id, user, lines [[product, name, unit price, quantity, amount, stock after], …],
--        subtotal, discount, total, coupon id or nil, balance after, ordered_at, idempotency], and if
--        there is more to say: [reference or nil, nil or [won taken from the wallet, hold_expires_at
--        or nil], counts [[line, limit number, bought after], …]]
-- Refusals: {unknown_product = id} · {not_on_sale = id} · {sale_not_open = [id, ms]} ·
--           {sale_ended = [id, ms]} · {purchase_limit = [id, limit, bought, requested]} ·
--           {insufficient_stock = [id, available]} ·
--           unknown_coupon · coupon_used · {coupon_expired = ms} ·
--           {subtotal_too_low = [required, subtotal]} ·
--           {price_changed = total} · {wallet_amount_above = total} ·
--           {too_many_pending = limit} · {insufficient_balance = [balance, required]}

local WALLETS, PRODUCTS, STOCKS = KEYS[5], KEYS[6], KEYS[7]
local HELD, TEMPLATE_NUMBERS, TEMPLATES, TERMS = KEYS[8], KEYS[9], KEYS[10], KEYS[11]
local PURCHASES, PENDING, PENDING_DUE, PENDING_USERS = KEYS[12], KEYS[13], KEYS[14], KEYS[15]

local stocks = load(STOCKS, ordered_products())
local users, place_of_user = distinct(2)
local wallets = load(WALLETS, users, place_of_user)
local held = load_held(HELD, 4)
local pending_users = load_pending_users(PENDING_USERS, users, place_of_user)
local products, any_limit = fetch(PRODUCTS, stocks.names), false
for at, packed in ipairs(products) do
  local p = packed and cmsgpack.unpack(packed)
  any_limit = any_limit or p and p[7]
  products[at] = p and {
    price = p[2], on_sale = p[3] == 'on_sale', from = p[4], till = p[5], limit = p[6],
    limit_number = p[7],
    packed = packed_text(stocks.names[at]) .. packed_text(p[1]) .. packed_number(p[2]),
  }
end

-- What the batch's users have bought of its products that have a limit.
local function load_purchases()
  local names, place = {}, {}
  for k = 2, any_limit and LAST or 0, STEP do
    local user, lines = batch[k + 2], batch[k + 3]
    for i = 1, #lines, 2 do
      local product = products[stocks.place[lines[i]]]
      if product and product.limit_number then
        note_purchase(names, place, purchase_field(product.limit_number, user))
      end
    end
  end
  return load(PURCHASES, names, place)
end

local purchases = load_purchases()

-- The terms of the coupons that the batch names, by their number's mark.
local function named_terms()
  local seen, marks, terms = {}, {}, {}
  for k = 2, LAST, STEP do
    local user, coupon_id = batch[k + 2], batch[k + 4]
    local coupons = coupon_id and not later[k] and held.value[held.place[user]]
    local at = coupons and coupon_at(coupons, coupon_id, 4)
    local mark = at and coupon_mark(coupons, at)
    if mark and not seen[mark] then seen[mark], marks[#marks + 1] = true, mark end
  end
  local ids, known, earlier = fetch(TEMPLATE_NUMBERS, marks), {}, {}
  for _, id in ipairs(ids) do known[#known + 1] = id or '' end
  for i, packed in ipairs(fetch(TEMPLATES, known)) do
    local t, mark = packed and cmsgpack.unpack(packed), marks[i]
    if t and struct.pack('>I4', t[10] or t[1]) == mark then
      terms[mark] = { kind = t[3], value = t[4], max = t[5], min_subtotal = t[6] }
    elseif t then
      earlier[#earlier + 1] = mark
    end
  end
  for i, packed in ipairs(fetch(TERMS, earlier)) do
    local t = packed and cmsgpack.unpack(packed)
    terms[earlier[i]] = t and { kind = t[1], value = t[2], max = t[3], min_subtotal = t[4] }
  end
  return terms
end

local terms = named_terms()
-- Of the order that `decide` works on: the places of its products in `stocks`, and what would be
-- left of each.
local places, left = {}, {}

-- Why this many pieces of the product are not sold to the user now; nil: they are.
local function unsellable(product, stock, id, user, quantity)
  if not product or not stock then return { unknown_product = id } end
  if not product.on_sale then return { not_on_sale = id } end
  if product.from and now < product.from then return { sale_not_open = { id, product.from } } end
  if product.till and now >= product.till then
    passed(product.till)
    return { sale_ended = { id, product.till } }
  end
  if product.limit then
    local bought = bought_of(purchases, purchase_field(product.limit_number, user))
    if bought + quantity > product.limit then
      return { purchase_limit = { id, product.limit, bought, quantity } }
    end
  end
  if stock < quantity then return { insufficient_stock = { id, stock } } end
end

-- Prices the lines: a refusal; or nil, the fact's lines (packed) and the subtotal.
local function price(lines, user)
  local packed, subtotal = list_mark(#lines / 2), 0
  for i = 1, #lines, 2 do
    local id, quantity = lines[i], lines[i + 1]
    local at = stocks.place[id]
    local product, stock = products[at], tonumber(stocks.value[at])
    local refused = unsellable(product, stock, id, user, quantity)
    if refused then return refused end
    local amount = product.price * quantity
    subtotal = subtotal + amount
    places[i], left[i] = at, stock - quantity
    packed = packed .. '\150' .. product.packed .. packed_number(quantity) .. packed_number(amount)
      .. packed_number(left[i])
  end
  return nil, packed, subtotal
end

-- Counts the lines for the limits of their products: the fact's counts (packed), and how many.
local function count_purchases(lines, user)
  if not any_limit then return '', 0 end
  local packed, counted = '', 0
  for i = 1, #lines, 2 do
    local number = products[places[i]].limit_number
    if number then
      local field = purchase_field(number, user)
      local bought = bought_of(purchases, field) + lines[i + 1]
      set_bought(purchases, field, bought)
      packed = packed .. packed_count((i - 1) / 2, number, bought)
      counted = counted + 1
    end
  end
  return packed, counted
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

local new_pending, new_due = {}, {}

-- The record of a pending order: see src/redis/records.rs.
local function hold(order_id, user, lines, amounts, coupon_id, won, ends_at, reference)
  local held_lines = list_mark(#lines / 2)
  for i = 1, #lines, 2 do
    local product = products[places[i]]
    held_lines = held_lines .. '\150' .. product.packed .. packed_number(lines[i + 1])
      .. packed_number(product.price * lines[i + 1])
      .. (product.limit_number and packed_number(product.limit_number) or NIL)
  end
  if #new_pending == 0 then check_pending(PENDING, PENDING_DUE) end
  new_pending[#new_pending + 1] = order_id
  new_pending[#new_pending + 1] = '\154' .. packed_text(user) .. held_lines .. amounts
    .. (coupon_id and ID .. coupon_id or NIL) .. packed_number(won) .. NOW
    .. packed_number(ends_at) .. (reference and packed_text(reference) or NIL)
  new_due[#new_due + 1], new_due[#new_due + 2] = string.format('%d', ends_at), order_id
  add_pending(pending_users, user, won)
end

-- What is taken from the wallet now, and the end of the hold if something stays due; or nil and a
-- refusal.
local function payment(user, outside, total)
  if not outside then return total end
  local won, hold_ms, most = outside[1], outside[2], outside[3]
  if won > total then return nil, { wallet_amount_above = total } end
  if won == total then return won end
  if pending_of(pending_users, user) >= most then return nil, { too_many_pending = most } end
  return won, now + hold_ms
end

-- The fact's last value, if there is one.
local function packed_more(more, won, ends_at, counts, counted)
  if not more and counted == 0 then return '' end
  local reference, outside = more and more[1], more and more[2]
  needs_latest_format()
  return '\147' .. (reference and packed_text(reference) or NIL)
    .. (outside and '\146' .. packed_number(won) .. (ends_at and packed_number(ends_at) or NIL)
      or NIL)
    .. list_mark(counted) .. counts
end

local function decide(k, key)
  local order_id, user, lines = batch[k + 1], batch[k + 2], batch[k + 3]
  local coupon_id, expected_total, more = batch[k + 4], batch[k + 5], batch[k + 6]
  local wallet_at, held_at = wallets.place[user], held.place[user]
  local balance = tonumber(wallets.value[wallet_at]) or 0
  local refused, priced, subtotal = price(lines, user)
  if refused then return refused end
  local coupons = held_at and held.value[held_at]
  local coupon_refused, discount, place = discount_of(coupon_id, coupons, subtotal)
  if coupon_refused then return coupon_refused end
  local total = subtotal - discount
  if expected_total and expected_total ~= total then return { price_changed = total } end
  local outside = more and more[2]
  local won, ends_at = payment(user, outside, total)
  if not won then return ends_at end
  if balance < won then return { insufficient_balance = { balance, won } } end

  for i = 1, #lines, 2 do
    local at = places[i]
    stocks.value[at], stocks.changed[at] = left[i], true
  end
  local counts, counted = count_purchases(lines, user)
  -- A payment outside alone never touches the wallet.
  if won > 0 or not outside then
    wallets.value[wallet_at], wallets.changed[wallet_at] = balance - won, true
  end
  if place then
    held.value[held_at], held.changed[held_at] = coupon_used_by(coupons, place, order_id), true
  end
  local amounts = packed_number(subtotal) .. packed_number(discount) .. packed_number(total)
  if ends_at then
    hold(order_id, user, lines, amounts, coupon_id, won, ends_at, more[1])
  end
  local last = packed_more(more, won, ends_at, counts, counted)
  return nil, (last == '' and '\154' or '\155') .. ID .. order_id .. text_mark(#user) .. user
    .. priced .. amounts .. (coupon_id and ID .. coupon_id or NIL)
    .. packed_number(balance - won) .. NOW .. packed_key(key) .. last
end

local function write()
  store(stocks)
  store(wallets)
  store(held)
  store(purchases)
  store_pending_users(pending_users)
  put(PENDING, new_pending)
  if #new_due > 0 then redis.call('ZADD', PENDING_DUE, unpack(new_due)) end
end

return run('place_order', decide, write)
