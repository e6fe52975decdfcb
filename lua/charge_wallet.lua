-- Charges wallets; a wallet is made by its first charge.
--
-- KEYS  5 wallets
-- body  [user, amount, new charge id]
-- fact  [charge id, user, amount, balance after, charged_at, idempotency]
-- Refusals: {balance_limit = present balance}

local WALLETS = KEYS[5]

local balances = fetch(WALLETS, distinct(1))
local changed = {}

local function decide(body)
  local user, amount, charge_id = body[1], body[2], body[3]
  local balance = tonumber(balances[user]) or 0
  if balance + amount > MAX_BALANCE then return { balance_limit = balance } end
  balance = balance + amount
  balances[user], changed[user] = balance, balance
  return nil, { charge_id, user, amount, balance, now }
end

return run('charge_wallet', decide, function() store(WALLETS, changed) end)
