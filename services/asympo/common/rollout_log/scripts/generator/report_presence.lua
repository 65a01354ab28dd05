#!lua flags=allow-oom
-- A holder says it is alive. KEYS: presence, presence_until. ARGV: holder, status JSON, milliseconds (0: goodbye).
-- Twice: the later report counts.
--!include time
local presence, presence_until = unpack(KEYS)
local milliseconds = tonumber(ARGV[3])
if #ARGV[1] > 512 or #ARGV[2] > 16384 or not milliseconds or milliseconds > 86400000 then
  return redis.error_reply('ERR a holder, a short status and at most a day are needed')
end
local now = now_ms()
if milliseconds > 0 then
  if redis.call('HLEN', presence) >= 4096 and redis.call('HEXISTS', presence, ARGV[1]) == 0 then
    return redis.error_reply('ERR so many holders are here that no more are listed')
  end
  redis.call('HSET', presence, ARGV[1], ARGV[2])
  redis.call('ZADD', presence_until, now + milliseconds, ARGV[1])
else
  redis.call('ZADD', presence_until, 'XX', 0, ARGV[1])
end
for _, gone in ipairs(redis.call('ZRANGEBYSCORE', presence_until, '-inf', now, 'LIMIT', 0, 100)) do
  redis.call('HDEL', presence, gone)
  redis.call('ZREM', presence_until, gone)
end
return {'OK'}
