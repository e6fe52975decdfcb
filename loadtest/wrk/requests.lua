-- Makes the requests of one row, for wrk: wrk … -s requests.lua URL -- PLAN
--
-- PLAN is a Lua file that returns a table:
--   parts    the request's text, cut where something goes in; one part alone is the same request every time
--   numbers  {start per thread}, with `step`, `modulus`: what goes in is a number of ten digits, the same at every cut,
--            that goes on by `step` with each request. Or:
--   files    {file per thread}: what goes in comes from the file's lines, of which the first gap gets `first` bytes;
--            when they are used up, the thread stops and says so, or begins again where `again` is set
--   count    true: count what is answered, by status and code. That costs time, so it is done in the warm-up only.

local plan

function setup(thread)
  threads = threads or {}
  threads[#threads + 1] = thread
  thread:set("number", #threads)
end

local function numbered(parts, number, step, modulus)
  local one, two, three = parts[1], parts[2], parts[3]
  local function next_text()
    local text = string.format("%010d", number)
    number = number + step
    if number >= modulus then number = number - modulus end
    return text
  end
  if three then
    return function()
      local text = next_text()
      return one .. text .. two .. text .. three
    end
  end
  return function() return one .. next_text() .. two end
end

local function from_lines(parts, file, first, again)
  local one, two, three = parts[1], parts[2], parts[3]
  local lines, last = io.lines(file), nil
  local function next_line()
    if used_up then return last end -- until the thread stops
    local line = lines()
    if line then
      last = line
    elseif again then
      lines = io.lines(file)
      return lines()
    else
      used_up = true
      wrk.thread:stop()
    end
    return last
  end
  if three then
    return function()
      local line = next_line()
      return one .. string.sub(line, 1, first) .. two .. string.sub(line, first + 1) .. three
    end
  end
  return function() return one .. next_line() .. two end
end

function init(args)
  plan = dofile(args[1])
  local parts = plan.parts
  if #parts == 1 then
    local only = parts[1]
    request = function() return only end
  elseif plan.numbers then
    request = numbered(parts, plan.numbers[number], plan.step, plan.modulus)
  else
    request = from_lines(parts, plan.files[number], plan.first, plan.again)
  end
  if plan.count then
    counts = {}
    response = function(status, _, body)
      local key = status < 400 and tostring(status) or status .. " " .. (string.match(body, '"code":"([%w-]+)"') or "?")
      counts[key] = (counts[key] or 0) + 1
    end
  end
end

-- One line of JSON for the bench. Latencies are wrk's: corrected for the time that requests would
-- have waited.
function done(summary, latency)
  local counts, used_up = {}, false
  for _, thread in ipairs(threads) do
    used_up = used_up or thread:get("used_up") or false
    for key, count in pairs(thread:get("counts") or {}) do counts[key] = (counts[key] or 0) + count end
  end
  local listed = {}
  for key, count in pairs(counts) do listed[#listed + 1] = string.format('"%s":%d', key, count) end
  local e = summary.errors
  io.write(string.format(
    'RESULT {"duration_us":%d,"requests":%d,"refused":%d,"broken":%d,"p50_us":%d,"p99_us":%d,"used_up":%s,"counts":{%s}}\n',
    summary.duration, summary.requests, e.status, e.connect + e.read + e.write + e.timeout,
    latency:percentile(50), latency:percentile(99), tostring(used_up), table.concat(listed, ",")))
end
