-- Milliseconds of the broker's own clock: the only clock that decides anything.
local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- Lua writes large numbers in scientific notation; stored numbers must be plain. What goes to a command as text
-- already costs the broker a third of what a number does there.
local function plain(number)
  return string.format('%.0f', number)
end
