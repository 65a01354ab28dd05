#!lua flags=no-writes
-- Everyone whose report is still true. KEYS: presence, presence_until. Replies holder, milliseconds left, status, ...
-- A status longer than the script that stores it allows is replied as empty.
--!include time
local now, found = now_ms(), {}
local alive = redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. plain(now), '+inf', 'WITHSCORES', 'LIMIT', 0, 4096)
for i = 1, #alive, 2 do
  local size = redis.call('HSTRLEN', KEYS[1], alive[i])
  local status = size > 16384 and '' or redis.call('HGET', KEYS[1], alive[i])
  if status then
    found[#found + 1] = string.sub(alive[i], 1, 512)
    found[#found + 1] = math.min(tonumber(alive[i + 1]) - now, 86400000)
    found[#found + 1] = status
  end
end
return found
