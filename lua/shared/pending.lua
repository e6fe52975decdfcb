-- Orders that wait for a payment outside: what they hold for their users. Needs batch.lua.
--
-- `pending` has the orders, as src/redis/records.rs describes them; `pending_due` their ids by the
-- end of the hold; `pending_users` per user `<orders>:<won that they took from the wallet>`.

-- Loads what the users hold in pending orders. Most shops have none: then nothing is read for each.
local function load_pending_users(key, names, place)
  if redis.call('HLEN', key) > 0 then return load(key, names, place) end
  return { key = key, names = names, place = place, value = {}, changed = {} }
end

-- The number of the user's pending orders, and the won that they took from the wallet.
local function pending_of(users, user)
  local held = users.value[users.place[user]]
  if not held then return 0, 0 end
  local orders, won = string.match(held, '^(%d+):(%d+)$')
  return tonumber(orders), tonumber(won)
end

local function set_pending(users, user, orders, won)
  local at = users.place[user]
  users.value[at], users.changed[at] = string.format('%d:%d', orders, won), true
end

local function add_pending(users, user, won)
  local orders, before = pending_of(users, user)
  set_pending(users, user, orders + 1, before + won)
end

local function take_pending(users, user, won)
  local orders, before = pending_of(users, user)
  set_pending(users, user, math.max(orders - 1, 0), math.max(before - won, 0))
end

-- Writes the users' counts; a user without pending orders has none.
local function store_pending_users(users)
  for at in pairs(users.changed) do
    local value = users.value[at]
    if string.sub(value, 1, 2) == '0:' then
      redis.call('HDEL', users.key, users.names[at])
    else
      redis.call('HSET', users.key, users.names[at], value)
    end
  end
end

-- A key of a wrong type must fail before anything is written.
local function check_pending(orders_key, due_key)
  redis.call('HLEN', orders_key)
  redis.call('ZCARD', due_key)
end

-- Removes orders that are not pending any more.
local function remove_pending(orders_key, due_key, ids)
  if #ids == 0 then return end
  redis.call('HDEL', orders_key, unpack(ids))
  redis.call('ZREM', due_key, unpack(ids))
end
