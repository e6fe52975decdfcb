-- Cancels orders, once: gives back what they took. The caller reads the order from PostgreSQL and
-- must have done so in this epoch, because `cancelled` does not hold what earlier epochs cancelled.
-- A pending order is cancelled only as one, and a paid one only as that: the script decides which
-- it is now.
--
-- KEYS  as in shared/give_back.lua · 10 cancelled · 11 pending · 12 pending due
-- body  as in shared/give_back.lua, then: epoch of the read, whether the order was read as pending,
--       won that were paid outside (nil: the order is paid from the wallet alone)
-- fact  [order id, user, lines [[product, quantity, stock after], …], won, coupon id or nil,
--        coupon returned, balance after, cancelled_at, idempotency], and if the order is paid
--        outside, or counted for limits: [was pending, won paid outside or nil,
--        counts [[line, limit number, bought after], …]]
-- Refusals: stale_read · not_pending · already_cancelled · {unknown_product = id} ·
--           {balance_limit = present balance}

local CANCELLED, PENDING, PENDING_DUE = KEYS[10], KEYS[11], KEYS[12]

local order_ids, place_of = distinct(1)
local cancelled = redis.call('SMISMEMBER', CANCELLED, unpack(order_ids))
local pending = fetch(PENDING, order_ids)
local new_cancelled, not_pending = {}, {}

local function decide(k, key)
  local order_id, user, lines = batch[k + 1], batch[k + 2], batch[k + 3]
  local won, coupon_id, limits = batch[k + 4], batch[k + 5], batch[k + 6]
  local read_in, was_pending, paid_outside = batch[k + 7], batch[k + 8], batch[k + 9]
  if read_in ~= epoch then return 'stale_read' end
  local order_at, wallet_at = place_of[order_id], wallets.place[user]
  if cancelled[order_at] == 1 then return 'already_cancelled' end
  if was_pending ~= (pending[order_at] and true or false) then return 'not_pending' end
  local balance = tonumber(wallets.value[wallet_at]) or 0
  local _, held_won = pending_of(pending_users, user)
  if not was_pending and balance + held_won + won > MAX_BALANCE then
    return { balance_limit = balance }
  end
  local unknown = unknown_product(lines)
  if unknown then return { unknown_product = unknown } end

  local returned = return_stock(lines)
  -- A payment outside alone never touches the wallet.
  if won > 0 or not paid_outside then balance = return_balance(user, won) end
  local coupon_returned = return_coupon(user, coupon_id, order_id)
  local counts = return_counts(user, lines, limits)
  cancelled[order_at] = 1
  new_cancelled[#new_cancelled + 1] = order_id
  if was_pending then
    pending[order_at] = false
    if #not_pending == 0 then check_pending(PENDING, PENDING_DUE) end
    not_pending[#not_pending + 1] = order_id
    take_pending(pending_users, user, won)
  end
  local fact = {
    order_id, user, returned, won, coupon_id or NULL, coupon_returned, balance, now, key or NULL,
  }
  if paid_outside or #counts > 0 then
    needs_latest_format()
    fact[10] = { was_pending, paid_outside or NULL, counts }
  end
  return nil, cmsgpack.pack(fact)
end

local function write()
  store_given_back()
  redis.call('SADD', CANCELLED, unpack(new_cancelled))
  remove_pending(PENDING, PENDING_DUE, not_pending)
end

return run('cancel_order', decide, write)
