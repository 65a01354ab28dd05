#!lua flags=allow-oom
-- Keeps ownership. KEYS: run. ARGV: fence number, token, server id, heartbeat in milliseconds, trained sequence or 0.
-- Twice: valid from the later call.
--!include time
--!include fence
local problem = fence_problem(KEYS[1])
if problem then
  return problem
end
local learner = learner_hash(KEYS[1])
redis.call('HSET', learner, 'fence_deadline_ms', plain(now_ms() + tonumber(ARGV[4])))
if ARGV[5] ~= '0' then
  redis.call('HSET', learner, 'trained_sequence', ARGV[5])
end
return {'OK'}
