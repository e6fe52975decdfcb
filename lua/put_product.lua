-- Creates or changes products. A product's stock is given when it is created and changes by adjustments afterwards.
--
-- KEYS  5 products · 6 stocks · 7 product ids
-- body  [product, name, price, status, stock or nil]
-- fact  [product, name, price, status, stock after, created, put_at, idempotency]
-- Refusals: stock_given

local PRODUCTS, STOCKS, PRODUCT_IDS = KEYS[5], KEYS[6], KEYS[7]

local stocks = fetch(STOCKS, distinct(1))
local new_products, new_stocks, new_ids = {}, {}, {}
-- keys of a wrong type must fail before anything is written
redis.call('ZCARD', PRODUCT_IDS)
redis.call('HLEN', PRODUCTS)

local function decide(body)
  local id, name, price, status, stock = body[1], body[2], body[3], body[4], body[5]
  local created = not stocks[id]
  if stock and not created then return 'stock_given' end
  if created then
    stocks[id], new_stocks[id] = stock or 0, stock or 0
    new_ids[#new_ids + 1] = id
  end
  new_products[id] = cmsgpack.pack({ name, price, status })
  return nil, { id, name, price, status, tonumber(stocks[id]), created, now }
end

local function write()
  store(PRODUCTS, new_products)
  store(STOCKS, new_stocks)
  for _, id in ipairs(new_ids) do redis.call('ZADD', PRODUCT_IDS, 0, id) end
end

return run('put_product', decide, write)
