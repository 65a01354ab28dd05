#!lua flags=allow-oom
-- Moves a run to a state. KEYS: run, wake. ARGV: fence number (0: a person's command), token, server id, state, reason.
-- Twice: the same state again, and one more event, which only makes waiters look once more.
--!include wake
--!include fence
if ARGV[1] ~= '0' then
  local problem = fence_problem(KEYS[1])
  if problem then
    return problem
  end
end
local learner = learner_hash(KEYS[1])
if redis.call('HEXISTS', learner, 'capacity') == 0 then
  return {'MISSING'}
end
redis.call('HSET', learner, 'state', ARGV[4], 'state_reason', ARGV[5])
wake_all(KEYS[2], ARGV[4])
return {'OK'}
