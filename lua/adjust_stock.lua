-- Adds to products' stock, or takes from it. Cancellations may lift a stock above the highest; even
-- then it can be lowered.
--
-- KEYS  5 stocks
-- body  [product, delta, reason or nil, highest stock]
-- fact  [product, delta, reason or nil, stock after, adjusted_at, idempotency]
-- Refusals: unknown_product · {below_zero = available} · {too_high = available}

local stocks = load(KEYS[5], distinct(1))

local function decide(k, key)
  local id, delta, reason, highest = batch[k + 1], batch[k + 2], batch[k + 3], batch[k + 4]
  local at = stocks.place[id]
  local stock = tonumber(stocks.value[at])
  if not stock then return 'unknown_product' end
  if stock + delta < 0 then return { below_zero = stock } end
  if delta > 0 and stock + delta > highest then return { too_high = stock } end
  stocks.value[at], stocks.changed[at] = stock + delta, true
  return nil, cmsgpack.pack({ id, delta, reason or NULL, stock + delta, now, key or NULL })
end

return run('adjust_stock', decide, function() store(stocks) end)
