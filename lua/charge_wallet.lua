-- Charges wallets. The first charge of more than 0 creates the wallet. A charge of 0 only stores
-- the record of its key; without a key, nothing is logged. What pending orders took from the wallet
-- counts towards its limit, so that it can be given back at any time.
--
-- KEYS  5 wallets · 6 pending users
-- body  [user, amount, new charge id]
-- fact  [charge id, user, amount, balance after, charged_at, idempotency]
-- Refusals: {balance_limit = present balance}

local users, place_of_user = distinct(1)
local wallets = load(KEYS[5], users, place_of_user)
local pending_users = load_pending_users(KEYS[6], users, place_of_user)

local function decide(k, key)
  local user, amount, charge_id = batch[k + 1], batch[k + 2], batch[k + 3]
  local at = wallets.place[user]
  local balance = tonumber(wallets.value[at]) or 0
  local _, held = pending_of(pending_users, user)
  if balance + held + amount > MAX_BALANCE then return { balance_limit = balance } end
  if amount > 0 then wallets.value[at], wallets.changed[at] = balance + amount, true end
  return nil, '\150' .. ID .. charge_id .. text_mark(#user) .. user .. packed_number(amount)
    .. packed_number(balance + amount) .. NOW .. packed_key(key), amount == 0 and not key
end

return run('charge_wallet', decide, function() store(wallets) end)
