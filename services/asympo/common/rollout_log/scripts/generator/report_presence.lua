#!lua flags=allow-oom
-- A holder says it is alive. KEYS: presence, presence_until. ARGV: holder, status JSON, milliseconds (0: goodbye).
-- Twice: the later report counts.
--!include time
local presence, presence_until = unpack(KEYS)
local now = now_ms()
if tonumber(ARGV[3]) > 0 then
  redis.call('HSET', presence, ARGV[1], ARGV[2])
  redis.call('ZADD', presence_until, now + tonumber(ARGV[3]), ARGV[1])
else
  redis.call('ZADD', presence_until, 'XX', 0, ARGV[1])
end
for _, gone in ipairs(redis.call('ZRANGEBYSCORE', presence_until, '-inf', now, 'LIMIT', 0, 100)) do
  redis.call('HDEL', presence, gone)
  redis.call('ZREM', presence_until, gone)
end
return {'OK'}
