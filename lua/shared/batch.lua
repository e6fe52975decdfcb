-- The requests of a batch, and the values that they need: read once for all of them, changed by one
-- decision for the next, written at the end. Needs fetch.lua.
--
-- ARGV 2 is a list of the requests' values, one request after the other: deadline_ms, [idempotency
-- scope, request hash] or nil, and the body's. (A table for each request would cost more than many
-- a decision.)

-- A user's coupons are one value, read and written as a whole. So that a user who holds very many
-- does not keep others waiting, a call writes so many bytes of large values (or one value), and
-- reads few more bytes than it may. Small values are not counted.
local HELD_WRITE_BYTES = 160 * 1024
local HELD_SMALL_BYTES = 1024
local HELD_READ_BYTES = 2 * 1024 * 1024
local HELD_PER_READ = 16

local REQUESTS, STEP = head[6], head[7]
-- Of a request with the key at `k`: the deadline is at k - 1, the first value of its body at k + 1.
local batch = cmsgpack.unpack(ARGV[2])
local LAST = REQUESTS * STEP
-- Verdicts on requests that the caller must send again, by the place of their key.
local later = {}
local NOT_READ = cmsgpack.pack({ 5, 0 })

-- The distinct values at `column` of the bodies, and the place of each among them. With `required`,
-- only of requests that have a value at that column.
local function distinct(column, required)
  local names, place, count = {}, {}, 0
  for k = 2, LAST, STEP do
    local name = batch[k + column]
    if name and not place[name] and (not required or batch[k + required]) then
      count = count + 1
      names[count], place[name] = name, count
    end
  end
  return names, place
end

-- The distinct products of all orders in the batch, whose lines are the bodies' third value.
local function ordered_products()
  local names, place, count = {}, {}, 0
  for k = 2, LAST, STEP do
    local lines = batch[k + 3]
    for i = 1, #lines, 2 do
      local name = lines[i]
      if not place[name] then
        count = count + 1
        names[count], place[name] = name, count
      end
    end
  end
  return names, place
end

-- What the batch needs of a hash: the names, the place of each, the values there (which a decision
-- changes for the next ones), and the places that `store` writes.
local function load(key, names, place)
  return { key = key, names = names, place = place, value = fetch(key, names), changed = {} }
end

-- Loads the coupons of the users, who are the bodies' second values. With `required`, only for
-- requests that have a value at that column. Requests that would make the call too long get a
-- verdict in `later`.
local function load_held(key, required)
  local names, place = distinct(2, required)
  local values, read, bytes, largest = {}, 0, 0, 0
  while read < #names and bytes <= HELD_READ_BYTES do
    local last = math.min(read + HELD_PER_READ, #names)
    local found = redis.call('HMGET', key, unpack(names, read + 1, last))
    for i, coupons in ipairs(found) do
      values[read + i] = coupons
      if coupons then bytes, largest = bytes + #coupons, math.max(largest, #coupons) end
    end
    read = last
  end
  local part, written = { key = key, names = names, place = place, value = values, changed = {} }, 0
  if read == #names and largest <= HELD_SMALL_BYTES then return part end
  for k = 2, LAST, STEP do
    local at = (not required or batch[k + required]) and place[batch[k + 2]]
    local size = at and values[at] and #values[at] or 0
    if at and at > read then
      later[k] = NOT_READ
    elseif size > HELD_SMALL_BYTES then
      if written > 0 and written + size > HELD_WRITE_BYTES then
        later[k] = cmsgpack.pack({ 5, size })
      else
        written = written + size
      end
    end
  end
  return part
end

-- One HSET (or a few) of name, value, name, value, …
local function put(key, flat)
  for first = 1, #flat, ARGUMENTS_PER_CALL do
    redis.call('HSET', key, unpack(flat, first, math.min(first + ARGUMENTS_PER_CALL - 1, #flat)))
  end
end

-- Writes the values that decisions have changed.
local function store(part)
  local names, values, changed, flat, count = part.names, part.value, part.changed, {}, 0
  for at = 1, #names do
    if changed[at] then
      local value = values[at]
      -- Redis formats a number as a fraction, which takes several times as long
      if type(value) == 'number' then value = string.format('%d', value) end
      flat[count + 1], flat[count + 2] = names[at], value
      count = count + 2
    end
  end
  put(part.key, flat)
end
