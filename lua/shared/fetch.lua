-- Reading many fields of one hash.

local ARGUMENTS_PER_CALL = 4000 -- Lua can unpack some 8,000 values at once

-- One HMGET (or a few): the values in the order of the names, false for absent ones.
local function fetch(key, names)
  if #names == 0 then return {} end
  if #names <= ARGUMENTS_PER_CALL then return redis.call('HMGET', key, unpack(names)) end
  local found = {}
  for first = 1, #names, ARGUMENTS_PER_CALL do
    local last = math.min(first + ARGUMENTS_PER_CALL - 1, #names)
    local values = redis.call('HMGET', key, unpack(names, first, last))
    for i = first, last do found[i] = values[i - first + 1] end
  end
  return found
end
