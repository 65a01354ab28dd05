#!lua flags=no-writes
-- Everyone whose report is still true. KEYS: presence, presence_until. Replies holder, milliseconds left, status, ...
--!include time
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
