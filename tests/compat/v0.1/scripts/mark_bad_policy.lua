#!lua flags=allow-oom
-- Reports a bad policy. KEYS: bad_policies, wake. ARGV: "<fence>:<step>", report JSON.
-- Twice: the first report is kept.
-- Milliseconds of the broker's own clock: the only clock that decides anything.
local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- Lua writes large numbers in scientific notation; stored numbers must be plain.
local function plain(number)
  return string.format('%.0f', number)
end
-- Wakes everyone who was refused and waits. Old events may go: a waiter only needs the newest.
local function wake_all(wake, why)
  redis.call('XADD', wake, 'MAXLEN', '64', '*', 'why', why)
end
if redis.call('HSETNX', KEYS[1], ARGV[1], plain(now_ms()) .. ':' .. ARGV[2]) == 1 then
  wake_all(KEYS[2], 'bad_policy')
end
return {'OK'}
