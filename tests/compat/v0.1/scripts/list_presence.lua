#!lua flags=no-writes
-- Everyone whose report is still true. KEYS: presence, presence_until. Replies holder, milliseconds left, status, ...
-- Milliseconds of the broker's own clock: the only clock that decides anything.
local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- Lua writes large numbers in scientific notation; stored numbers must be plain.
local function plain(number)
  return string.format('%.0f', number)
end
local now, found = now_ms(), {}
local alive = redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. plain(now), '+inf', 'WITHSCORES')
for i = 1, #alive, 2 do
  local status = redis.call('HGET', KEYS[1], alive[i])
  if status then
    found[#found + 1] = alive[i]
    found[#found + 1] = tonumber(alive[i + 1]) - now
    found[#found + 1] = status
  end
end
return found
