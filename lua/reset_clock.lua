#!lua
-- Sets a cell's clock back to the server's, if it is ahead. An operator accepts with this that
-- facts dated in between may be later than those that follow.
-- KEYS 1 meta · ARGV 1 epoch · Returns 1 when it was set back, else 0.
local meta = redis.call('HMGET', KEYS[1], 'epoch', 'clock')
local server_time = redis.call('TIME')
local time = server_time[1] * 1000 + math.floor(server_time[2] / 1000)
if meta[1] ~= ARGV[1] or (tonumber(meta[2]) or 0) <= time then return 0 end
redis.call('HSET', KEYS[1], 'clock', string.format('%d', time))
return 1
