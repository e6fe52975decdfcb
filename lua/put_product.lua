-- Creates or changes products. A product's stock is set when it is created; later, adjustments
-- change it. A limit per user gets a number when it is set, and keeps it until it is removed: a limit
-- that is set again later counts anew. `limits` of meta has the highest number.
--
-- KEYS  5 products · 6 stocks · 7 product ids · 8 attributes
-- body  [product, name, price, status, stock or nil, rules or nil: [sale_from or nil, sale_until or
--        nil, limit per user or nil, attributes (JSON) or nil]]
-- fact  [product, name, price, status, stock after, created, put_at, idempotency], and if there are
--        rules: [sale_from, sale_until, limit per user, its number, attributes], each or nil
-- Refusals: stock_given

local PRODUCTS, STOCKS, PRODUCT_IDS, ATTRIBUTES = KEYS[5], KEYS[6], KEYS[7], KEYS[8]

local stocks = load(STOCKS, distinct(1))
local products = fetch(PRODUCTS, stocks.names)
for at, packed in ipairs(products) do products[at] = packed and cmsgpack.unpack(packed) end
local limits = tonumber(redis.call('HGET', META, 'limits')) or 0
local new_limits = limits
local new_ids, changed = {}, {}
local new_attributes = {} -- by place; false: none
-- a key of a wrong type must fail before anything is written
redis.call('ZCARD', PRODUCT_IDS)
redis.call('HLEN', PRODUCTS)
redis.call('HLEN', ATTRIBUTES)

-- The number of the limit that the product has from now on; nil: none.
local function limit_number(at, limit)
  local before = products[at] and present(products[at][7])
  if not limit or before then return limit and before end
  new_limits = new_limits + 1
  return new_limits
end

local function decide(k, key)
  local id, name, price = batch[k + 1], batch[k + 2], batch[k + 3]
  local status, stock, rules = batch[k + 4], batch[k + 5], batch[k + 6]
  local at = stocks.place[id]
  local created = not stocks.value[at]
  if stock and not created then return 'stock_given' end
  if created then
    stocks.value[at], stocks.changed[at] = stock or 0, true
    new_ids[#new_ids + 1] = id
  end
  local record = { name, price, status }
  local fact = { id, name, price, status, tonumber(stocks.value[at]), created, now, key or NULL }
  if rules then
    local from, till, limit, attributes = rules[1], rules[2], rules[3], rules[4]
    local number = limit_number(at, limit)
    if from or till or limit then
      record[4], record[5], record[6], record[7] =
        from or NULL, till or NULL, limit or NULL, number or NULL
    end
    needs_latest_format()
    fact[9] = { from or NULL, till or NULL, limit or NULL, number or NULL, attributes or NULL }
  end
  products[at], changed[at] = record, true
  new_attributes[at] = rules and rules[4] or false
  return nil, cmsgpack.pack(fact)
end

local function write()
  local flat, attributes, no_attributes = {}, {}, {}
  for at in pairs(changed) do
    local id = stocks.names[at]
    flat[#flat + 1], flat[#flat + 2] = id, cmsgpack.pack(products[at])
    if new_attributes[at] then
      attributes[#attributes + 1], attributes[#attributes + 2] = id, new_attributes[at]
    else
      no_attributes[#no_attributes + 1] = id
    end
  end
  put(PRODUCTS, flat)
  put(ATTRIBUTES, attributes)
  if #no_attributes > 0 then redis.call('HDEL', ATTRIBUTES, unpack(no_attributes)) end
  store(stocks)
  if new_limits > limits then redis.call('HSET', META, 'limits', new_limits) end
  for _, id in ipairs(new_ids) do redis.call('ZADD', PRODUCT_IDS, 0, id) end
end

return run('put_product', decide, write)
