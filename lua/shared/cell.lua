-- The cell as it stands and its clock, and the reasons for which both decisions and reads are
-- refused as a whole. Needs still_holds.lua.
--
-- KEYS  1 meta · 2 log
-- ARGV  1 MessagePack [epoch, highest seq seen, its tip, …]

local META, LOG = KEYS[1], KEYS[2]
local DAY_MS = 86400000
-- The states of a cell that serves. The second keeps out instances of versions that do not know
-- what the log now holds: they take the cell for closed.
local OPEN, OPEN_LATEST = 'open', 'open-2'
local NULL = cjson.null -- cmsgpack writes it as nil, which a Lua list cannot hold

-- A list's element, which may be NULL.
local function present(element)
  if element ~= NULL then return element end
end

local head = cmsgpack.unpack(ARGV[1])
local EPOCH, SEEN_SEQ, SEEN_TIP = head[1], head[2], head[3]

local meta = redis.call('HMGET', META, 'epoch', 'seq', 'tip', 'applied', 'clock', 'state')
local epoch, seq, tip = tonumber(meta[1]) or 0, tonumber(meta[2]) or 0, meta[3] or ''
local applied = tonumber(meta[4]) or 0
local clock = tonumber(meta[5]) or 0

-- The server's time is read once, because it moves within a script. Facts are dated by `now`, which
-- never runs backwards. Deadlines are compared with `time`: they must pass even while a clock that
-- was set back catches up.
local server_time = redis.call('TIME')
local time = server_time[1] * 1000 + math.floor(server_time[2] / 1000)
local now = math.max(clock, time)

-- Where the log stands, and the clock.
local function place()
  return { epoch, seq, tip, applied, now, time }
end

local function refuse(why)
  return cmsgpack.pack({ refused = { why, place() } })
end

-- Why this cell serves nobody, or not this caller; nil: it does. `server` is the run id of the
-- server that PostgreSQL names as the gate, nil: any.
local function cell_refusal(server)
  if not meta[1] then return 'absent' end
  if epoch ~= EPOCH then return 'epoch' end
  if server and server ~= server_id() then return 'elsewhere' end
  if meta[6] ~= OPEN and meta[6] ~= OPEN_LATEST then return 'closed' end
end

local function is_behind()
  return not still_holds(LOG, epoch, seq, tip, SEEN_SEQ, SEEN_TIP)
end
