-- Giving back what an order took: stock, balance, coupon (unless it has expired), and the pieces
-- that counted for limits per user. Needs coupons.lua, batch.lua, purchases.lua, pending.lua.
--
-- KEYS  5 wallets · 6 stocks · 7 held · 8 purchases · 9 pending users
-- body  [order id, user, lines [product, quantity, product, …], won, coupon id or nil,
--        limits or nil: of each line, the number of the limit that it counted for or 0, …]

local WALLETS, STOCKS, HELD, PURCHASES = KEYS[5], KEYS[6], KEYS[7], KEYS[8]

local users, place_of_user = distinct(2)
local stocks = load(STOCKS, ordered_products())
local wallets = load(WALLETS, users, place_of_user)
local held = load_held(HELD, 5)
local pending_users = load_pending_users(KEYS[9], users, place_of_user)

-- The counts of the lines that counted for a limit.
local function load_counts()
  local names, place = {}, {}
  for k = 2, LAST, STEP do
    local user, lines, limits = batch[k + 2], batch[k + 3], batch[k + 6]
    for line = 1, limits and #lines / 2 or 0 do
      if limits[line] > 0 then note_purchase(names, place, purchase_field(limits[line], user)) end
    end
  end
  return load(PURCHASES, names, place)
end

local purchases = load_counts()

-- Makes the order's coupon available again, unless it has expired or another order holds it.
local function return_coupon(user, coupon_id, order_id)
  local held_at = held.place[user]
  local coupons = coupon_id and held.value[held_at]
  local at = coupons and coupon_at(coupons, coupon_id, 4)
  if not at then return false end
  if coupon_order(coupons, at) ~= order_id then return false end
  local expires_at = coupon_issued_at(coupons, at) + COUPON_USABLE_MS
  if now >= expires_at then
    passed(expires_at)
    return false
  end
  held.value[held_at], held.changed[held_at] = coupon_used_by(coupons, at, UNUSED), true
  return true
end

local function unknown_product(lines)
  for i = 1, #lines, 2 do
    if not stocks.value[stocks.place[lines[i]]] then return lines[i] end
  end
end

-- The lines as the fact has them: [[product, quantity, stock after], …].
local function return_stock(lines)
  local returned = {}
  for i = 1, #lines, 2 do
    local at = stocks.place[lines[i]]
    local stock = tonumber(stocks.value[at]) + lines[i + 1]
    stocks.value[at], stocks.changed[at] = stock, true
    returned[#returned + 1] = { lines[i], lines[i + 1], stock }
  end
  return returned
end

-- Takes the pieces off the user's counts: [[line, limit number, bought after], …]. A count that is
-- gone belonged to a limit that was removed.
local function return_counts(user, lines, limits)
  local counts = {}
  for line = 1, limits and #lines / 2 or 0 do
    local number = limits[line]
    local field = number > 0 and purchase_field(number, user)
    if field and purchases.value[purchases.place[field]] then
      local bought = math.max(bought_of(purchases, field) - lines[2 * line], 0)
      set_bought(purchases, field, bought)
      counts[#counts + 1] = { line - 1, number, bought }
    end
  end
  return counts
end

local function return_balance(user, won)
  local at = wallets.place[user]
  local balance = (tonumber(wallets.value[at]) or 0) + won
  wallets.value[at], wallets.changed[at] = balance, true
  return balance
end

local function store_given_back()
  store(stocks)
  store(wallets)
  store(held)
  store(purchases)
  store_pending_users(pending_users)
end
