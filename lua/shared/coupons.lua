-- A user's coupons: one value of the hash `held`, which holds them one after the other, oldest
-- first, each as the same number of bytes. src/redis/held_coupons.rs has the table of these bytes;
-- issue_coupon.lua appends new ones. `at` is where a coupon begins, counted from 1. Needs cell.lua.

local COUPON_BYTES = 46
local COUPON_USABLE_MS = 365 * DAY_MS
local UNUSED = string.rep('\0', 16) -- in place of the order's id

-- Where the coupon begins whose bytes at `offset` are `bytes`; nil: there is none.
local function coupon_at(coupons, bytes, offset)
  local found = string.find(coupons, bytes, 1, true)
  while found and (found - 1 - offset) % COUPON_BYTES ~= 0 do
    found = string.find(coupons, bytes, found + 1, true)
  end
  return found and found - offset
end

-- The number of the coupon's template, as 4 bytes.
local function coupon_mark(coupons, at)
  return string.sub(coupons, at, at + 3)
end

local function coupon_issued_at(coupons, at)
  return (struct.unpack('>I6', coupons, at + 24))
end

-- The id of the order that uses the coupon, or UNUSED.
local function coupon_order(coupons, at)
  return string.sub(coupons, at + 30, at + 45)
end

-- The user's coupons when the one at `at` is used by `order_id`, or by none: UNUSED.
local function coupon_used_by(coupons, at, order_id)
  return string.sub(coupons, 1, at + 29) .. order_id .. string.sub(coupons, at + 46)
end
