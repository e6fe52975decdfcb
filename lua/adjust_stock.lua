-- Adds to products' stock, or takes from it.
--
-- KEYS  5 stocks
-- body  [product, delta, reason or nil, highest stock]
-- fact  [product, delta, reason or nil, stock after, adjusted_at, idempotency]
-- Refusals: unknown_product · {below_zero = available} · {too_high = available}

local STOCKS = KEYS[5]

local stocks = fetch(STOCKS, distinct(1))
local changed = {}

local function decide(body)
  local id, delta, reason, highest = body[1], body[2], body[3], body[4]
  local stock = tonumber(stocks[id])
  if not stock then return 'unknown_product' end
  if stock + delta < 0 then return { below_zero = stock } end
  if stock + delta > highest then return { too_high = stock } end
  stocks[id], changed[id] = stock + delta, stock + delta
  return nil, { id, delta, reason or NULL, stock + delta, now }
end

return run('adjust_stock', decide, function() store(STOCKS, changed) end)
