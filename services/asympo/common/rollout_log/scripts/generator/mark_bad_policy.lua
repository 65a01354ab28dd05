#!lua flags=allow-oom
-- Reports a bad policy. KEYS: bad_policies, wake. ARGV: "<fence>:<step>", report JSON.
-- Twice: the first report is kept.
--!include time
--!include wake
if redis.call('HSETNX', KEYS[1], ARGV[1], plain(now_ms()) .. ':' .. ARGV[2]) == 1 then
  wake_all(KEYS[2], 'bad_policy')
end
return {'OK'}
