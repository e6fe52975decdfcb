-- Confirms that pending orders were paid outside. From the end of its hold on, an order cannot be
-- confirmed, whether or not what it holds was given back yet.
--
-- KEYS  5 wallets · 6 pending · 7 pending due · 8 pending users
-- body  [order id, payment reference]
-- fact  [order id, payment reference, paid_at, balance of the user, the order as in `pending`,
--        idempotency]
-- Refusals: not_pending · {hold_expired = ms}

local WALLETS, PENDING, PENDING_DUE = KEYS[5], KEYS[6], KEYS[7]

local pending = load(PENDING, distinct(1))
local orders = {} -- the orders, unpacked, at the places of `pending`

local function load_users()
  local names, place = {}, {}
  for at = 1, #pending.names do
    local packed = pending.value[at]
    local order = packed and cmsgpack.unpack(packed)
    orders[at] = order
    if order and not place[order[1]] then
      names[#names + 1], place[order[1]] = order[1], #names + 1
    end
  end
  return names, place
end

local users, place_of_user = load_users()
local wallets = load(WALLETS, users, place_of_user)
local pending_users = load_pending_users(KEYS[8], users, place_of_user)
local not_pending = {}

local function decide(k, key)
  local order_id, payment_reference = batch[k + 1], batch[k + 2]
  local at = pending.place[order_id]
  local order = orders[at]
  if not order then return 'not_pending' end
  local user, won, ends_at = order[1], order[7], order[9]
  if now >= ends_at then
    passed(ends_at)
    return { hold_expired = ends_at }
  end
  orders[at] = nil
  if #not_pending == 0 then check_pending(PENDING, PENDING_DUE) end
  not_pending[#not_pending + 1] = order_id
  take_pending(pending_users, user, won)
  needs_latest_format()
  local balance = tonumber(wallets.value[wallets.place[user]]) or 0
  return nil, '\150' .. ID .. order_id .. packed_text(payment_reference) .. NOW
    .. packed_number(balance) .. pending.value[at] .. packed_key(key)
end

local function write()
  store_pending_users(pending_users)
  remove_pending(PENDING, PENDING_DUE, not_pending)
end

return run('confirm_order', decide, write)
