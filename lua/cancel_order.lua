-- Cancels orders, once: gives back stock, balance and (unless it has expired) the coupon. The
-- caller reads the order from PostgreSQL and must have done so in this epoch, because `cancelled`
-- does not hold what earlier epochs cancelled.
--
-- KEYS  5 wallets · 6 stocks · 7 held · 8 cancelled
-- body  [order id, user, lines [product, quantity, product, …], refund, coupon id or nil,
--        epoch of the read]
-- fact  [order id, user, lines [[product, quantity, stock after], …], refund, coupon id or nil,
--        coupon returned, balance after, cancelled_at, idempotency]
-- Refusals: stale_read · already_cancelled · {unknown_product = id} ·
--           {balance_limit = present balance}

local WALLETS, STOCKS, HELD, CANCELLED = KEYS[5], KEYS[6], KEYS[7], KEYS[8]

local stocks = load(STOCKS, ordered_products())
local wallets = load(WALLETS, distinct(2))
local held = load_held(HELD, 5)
local order_ids, place_of = distinct(1)
local cancelled = redis.call('SMISMEMBER', CANCELLED, unpack(order_ids))
local new_cancelled = {}

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

local function decide(k, key)
  local order_id, user, lines = batch[k + 1], batch[k + 2], batch[k + 3]
  local refund, coupon_id, read_in = batch[k + 4], batch[k + 5], batch[k + 6]
  if read_in ~= epoch then return 'stale_read' end
  local order_at, wallet_at = place_of[order_id], wallets.place[user]
  if cancelled[order_at] == 1 then return 'already_cancelled' end
  local balance = tonumber(wallets.value[wallet_at]) or 0
  if balance + refund > MAX_BALANCE then return { balance_limit = balance } end
  for i = 1, #lines, 2 do
    if not stocks.value[stocks.place[lines[i]]] then return { unknown_product = lines[i] } end
  end

  local returned = {}
  for i = 1, #lines, 2 do
    local at = stocks.place[lines[i]]
    local stock = tonumber(stocks.value[at]) + lines[i + 1]
    stocks.value[at], stocks.changed[at] = stock, true
    returned[#returned + 1] = { lines[i], lines[i + 1], stock }
  end
  balance = balance + refund
  wallets.value[wallet_at], wallets.changed[wallet_at] = balance, true
  local coupon_returned = return_coupon(user, coupon_id, order_id)
  cancelled[order_at] = 1
  new_cancelled[#new_cancelled + 1] = order_id
  return nil, cmsgpack.pack({
    order_id, user, returned, refund, coupon_id or NULL, coupon_returned, balance, now, key or NULL,
  })
end

local function write()
  store(stocks)
  store(wallets)
  store(held)
  redis.call('SADD', CANCELLED, unpack(new_cancelled))
end

return run('cancel_order', decide, write)
