#!lua flags=allow-oom
-- Gives ownership up; the number stays used. KEYS: run. ARGV: fence number, token.
-- Twice: the token is gone, nothing changes.
--!include beside
local learner = learner_hash(KEYS[1])
local held = redis.call('HMGET', learner, 'fence', 'fence_token')
if held[1] == ARGV[1] and held[2] == ARGV[2] then
  redis.call('HSET', learner, 'fence_token', '', 'fence_deadline_ms', 0)
end
return {'OK'}
