-- Charges wallets. The first charge of more than 0 creates the wallet. A charge of 0 only stores
-- the record of its key; without a key, nothing is logged.
--
-- KEYS  5 wallets
-- body  [user, amount, new charge id]
-- fact  [charge id, user, amount, balance after, charged_at, idempotency]
-- Refusals: {balance_limit = present balance}

local wallets = load(KEYS[5], distinct(1))

local function decide(k, key)
  local user, amount, charge_id = batch[k + 1], batch[k + 2], batch[k + 3]
  local at = wallets.place[user]
  local balance = tonumber(wallets.value[at]) or 0
  if balance + amount > MAX_BALANCE then return { balance_limit = balance } end
  if amount > 0 then wallets.value[at], wallets.changed[at] = balance + amount, true end
  return nil, '\150' .. ID .. charge_id .. text_mark(#user) .. user .. packed_number(amount)
    .. packed_number(balance + amount) .. NOW .. packed_key(key), amount == 0 and not key
end

return run('charge_wallet', decide, function() store(wallets) end)
