-- Pieces of MessagePack for values that are packed once per request. Joined in one expression they
-- need no tables and few strings, each of which costs as much as several steps of Lua.

local NIL = '\192'
local ID = '\176' -- before the 16 bytes of an id
local TEXT = {} -- by length, what stands before a text
local function text_mark(length)
  local mark = TEXT[length]
  if mark then return mark end
  mark = length < 32 and string.char(160 + length)
    or length < 256 and string.char(217, length)
    or length < 65536 and struct.pack('>BI2', 218, length)
    or struct.pack('>BI4', 219, length)
  TEXT[length] = mark
  return mark
end

local function list_mark(length)
  return length < 16 and string.char(144 + length)
    or length < 65536 and struct.pack('>BI2', 220, length)
    or struct.pack('>BI4', 221, length)
end

local function packed_text(text)
  return text_mark(#text) .. text
end

-- A whole number from 0 to 2^53.
local function packed_number(number)
  return number < 128 and string.char(number)
    or number < 65536 and struct.pack('>BI2', 205, number)
    or number < 4294967296 and struct.pack('>BI4', 206, number)
    or struct.pack('>BI8', 207, number)
end
