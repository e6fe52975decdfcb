-- Creates or changes products. A product's stock is set when it is created; later, adjustments
-- change it.
--
-- KEYS  5 products · 6 stocks · 7 product ids
-- body  [product, name, price, status, stock or nil]
-- fact  [product, name, price, status, stock after, created, put_at, idempotency]
-- Refusals: stock_given

local PRODUCTS, STOCKS, PRODUCT_IDS = KEYS[5], KEYS[6], KEYS[7]

local stocks = load(STOCKS, distinct(1))
local new_products, new_ids = {}, {}
-- a key of a wrong type must fail before anything is written
redis.call('ZCARD', PRODUCT_IDS)
redis.call('HLEN', PRODUCTS)

local function decide(k, key)
  local id, name, price = batch[k + 1], batch[k + 2], batch[k + 3]
  local status, stock = batch[k + 4], batch[k + 5]
  local at = stocks.place[id]
  local created = not stocks.value[at]
  if stock and not created then return 'stock_given' end
  if created then
    stocks.value[at], stocks.changed[at] = stock or 0, true
    new_ids[#new_ids + 1] = id
  end
  new_products[#new_products + 1] = id
  new_products[#new_products + 1] = cmsgpack.pack({ name, price, status })
  return nil, cmsgpack.pack({
    id, name, price, status, tonumber(stocks.value[at]), created, now, key or NULL,
  })
end

local function write()
  put(PRODUCTS, new_products)
  store(stocks)
  for _, id in ipairs(new_ids) do redis.call('ZADD', PRODUCT_IDS, 0, id) end
end

return run('put_product', decide, write)
