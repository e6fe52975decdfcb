-- Pieces that users have bought of products with a limit per user. A limit has a number from when it
-- is set on a product until it is removed; `purchases` has `<number, 4 bytes><user>` → pieces.
-- Needs batch.lua.

local function purchase_field(limit_number, user)
  return struct.pack('>I4', limit_number) .. user
end

-- Adds the field of a purchase to the names that will be loaded.
local function note_purchase(names, place, field)
  if place[field] then return end
  names[#names + 1], place[field] = field, #names + 1
end

local function bought_of(purchases, field)
  return tonumber(purchases.value[purchases.place[field]]) or 0
end

local function set_bought(purchases, field, pieces)
  local at = purchases.place[field]
  purchases.value[at], purchases.changed[at] = pieces, true
end

-- One line of an order that counts for a limit: its place among the lines (from 0), the limit's
-- number, the pieces that the user has bought after the decision.
local function packed_count(line, limit_number, bought)
  return '\147' .. packed_number(line) .. packed_number(limit_number) .. packed_number(bought)
end
