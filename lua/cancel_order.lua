-- Cancels orders, once: gives back stock, balance and (unless expired) the coupon. What an order holds comes from
-- PostgreSQL, so it must have been read in this epoch: later ones do not know what was cancelled before them.
--
-- KEYS  5 wallets · 6 stocks · 7 held · 8 cancelled
-- body  [order id, user, lines [[product, quantity], …], refund, coupon id or nil, epoch of the read]
-- fact  [order id, user, lines [[product, quantity, stock after], …], refund, coupon id or nil, coupon returned,
--        balance after, cancelled_at, idempotency]
-- Refusals: stale_read · already_cancelled · unknown_user · {unknown_product = id} · {balance_limit = present balance}

local WALLETS, STOCKS, HELD, CANCELLED = KEYS[5], KEYS[6], KEYS[7], KEYS[8]

local stocks = fetch(STOCKS, ordered_products())
local balances = fetch(WALLETS, distinct(2))
local held = fetch(HELD, users_with_coupon(5))
local order_ids = distinct(1)
local cancelled = {}
for i, is_cancelled in ipairs(redis.call('SMISMEMBER', CANCELLED, unpack(order_ids))) do
  cancelled[order_ids[i]] = is_cancelled == 1
end
local new_stocks, new_balances, new_held, new_cancelled = {}, {}, {}, {}

-- Makes the order's coupon available again, unless it has expired or another order holds it.
local function return_coupon(user, coupon_id, order_id)
  local coupons = coupon_id and held[user]
  local at = coupons and coupon_at(coupons, coupon_id, 4)
  if not at then return false end
  local _, issued_at, used_by = coupon_parts(coupons, at)
  if used_by ~= order_id then return false end
  local expires_at = issued_at + COUPON_USABLE_MS
  if now >= expires_at then
    passed(expires_at)
    return false
  end
  held[user] = coupon_used_by(coupons, at, UNUSED)
  new_held[user] = held[user]
  return true
end

local function decide(body)
  local order_id, user, lines, refund, coupon_id, read_in = body[1], body[2], body[3], body[4], body[5], body[6]
  if read_in ~= epoch then return 'stale_read' end
  if cancelled[order_id] then return 'already_cancelled' end
  local balance = tonumber(balances[user])
  if not balance then return 'unknown_user' end
  if balance + refund > MAX_BALANCE then return { balance_limit = balance } end
  for _, line in ipairs(lines) do
    if not stocks[line[1]] then return { unknown_product = line[1] } end
  end

  local returned = {}
  for i, line in ipairs(lines) do
    local stock = tonumber(stocks[line[1]]) + line[2]
    stocks[line[1]], new_stocks[line[1]] = stock, stock
    returned[i] = { line[1], line[2], stock }
  end
  balance = balance + refund
  balances[user], new_balances[user] = balance, balance
  local coupon_returned = return_coupon(user, coupon_id, order_id)
  cancelled[order_id] = true
  new_cancelled[#new_cancelled + 1] = order_id
  return nil, { order_id, user, returned, refund, coupon_id or NULL, coupon_returned, balance, now }
end

local function write()
  store(STOCKS, new_stocks)
  store(WALLETS, new_balances)
  store(HELD, new_held)
  redis.call('SADD', CANCELLED, unpack(new_cancelled))
end

return run('cancel_order', decide, write)
