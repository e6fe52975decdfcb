-- Ends holds that are over: gives back, once, what pending orders took. The leader of the cell sends
-- what it found in `pending` shortly before.
--
-- KEYS  as in shared/give_back.lua · 10 pending · 11 pending due
-- body  as in shared/give_back.lua
-- fact  [order id, user, lines [[product, quantity, stock after], …], won, coupon id or nil,
--        coupon returned, balance after, expired_at, counts [[line, limit number, bought after], …],
--        idempotency: nil]
-- Refusals: not_pending · {not_due = ms} · {unknown_product = id}

local PENDING, PENDING_DUE = KEYS[10], KEYS[11]

local order_ids, place_of = distinct(1)
local pending = fetch(PENDING, order_ids)
local due = redis.call('ZMSCORE', PENDING_DUE, unpack(order_ids))
local not_pending = {}

local function decide(k, key)
  local order_id, user, lines = batch[k + 1], batch[k + 2], batch[k + 3]
  local won, coupon_id, limits = batch[k + 4], batch[k + 5], batch[k + 6]
  local order_at, wallet_at = place_of[order_id], wallets.place[user]
  local ends_at = pending[order_at] and tonumber(due[order_at])
  if not ends_at then return 'not_pending' end
  if now < ends_at then return { not_due = ends_at } end
  local unknown = unknown_product(lines)
  if unknown then return { unknown_product = unknown } end

  local returned = return_stock(lines)
  local balance = tonumber(wallets.value[wallet_at]) or 0
  if won > 0 then balance = return_balance(user, won) end
  local coupon_returned = return_coupon(user, coupon_id, order_id)
  local counts = return_counts(user, lines, limits)
  pending[order_at] = false
  not_pending[#not_pending + 1] = order_id
  take_pending(pending_users, user, won)
  needs_latest_format()
  return nil, cmsgpack.pack({
    order_id, user, returned, won, coupon_id or NULL, coupon_returned, balance, now, counts, NULL,
  })
end

local function write()
  store_given_back()
  remove_pending(PENDING, PENDING_DUE, not_pending)
end

return run('expire_order', decide, write)
