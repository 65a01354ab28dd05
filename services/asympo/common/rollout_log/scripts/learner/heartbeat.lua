#!lua flags=allow-oom
-- Keeps ownership. KEYS: run. ARGV: fence number, token, server id, heartbeat in milliseconds, trained sequence or 0.
-- Replies CHANGED where a reconcile is due; until it comes, which may take a long step or a pause, the run stays owned.
-- Twice: valid from the later call.
--!include time
--!include fence
local learner = learner_hash(KEYS[1])
if redis.call('HGET', learner, 'fence_token') == ARGV[2] then
  redis.call('HSET', learner, 'fence_deadline_ms', plain(now_ms() + tonumber(ARGV[4])))
end
local problem = fence_problem(KEYS[1])
if problem then
  return problem
end
if ARGV[5] ~= '0' then
  redis.call('HSET', learner, 'trained_sequence', ARGV[5])
end
return {'OK'}
