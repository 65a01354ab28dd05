#!lua flags=allow-oom
-- Reports a bad policy. KEYS: bad_policies, wake. ARGV: "<fence>:<step>", report JSON.
-- Twice: the first report is kept. Nobody reads more than so many, nor longer ones.
--!include time
--!include wake
if not string.match(ARGV[1], '^%d+:%d+$') or #ARGV[1] > 32 or #ARGV[2] > 8192 or redis.call('HLEN', KEYS[1]) >= 4096 then
  return redis.error_reply('ERR a fence, a step and a short report are needed')
end
if redis.call('HSETNX', KEYS[1], ARGV[1], plain(now_ms()) .. ':' .. ARGV[2]) == 1 then
  wake_all(KEYS[2], 'bad_policy')
end
return {'OK'}
