#!lua flags=allow-oom
-- Announces a policy. KEYS: run, policies, policy_steps. ARGV: fence number, token, server id, step, digest, fence that
-- the policy was published under.
-- It wakes those who wait for a policy, not those who wait for a slot: they read the stream of announcements.
-- Replies OK, when (milliseconds), fence of the policy. Twice: the newest announcement is left as it is.
--!include time
--!include fence
local run, policies, policy_steps = unpack(KEYS)
local problem = fence_problem(run)
if problem then
  return problem
end
local learner = learner_hash(run)
local newest = redis.call('HMGET', learner, 'policy_step', 'policy_digest', 'policy_at_ms', 'policy_fence')
if newest[1] == ARGV[4] and newest[2] == ARGV[5] then
  return {'OK', newest[3], newest[4]}
end
local now, policy_fence = plain(now_ms()), ARGV[6]
local entry = redis.call('XADD', policies, 'MAXLEN', '4096', '*', 'step', ARGV[4], 'fence', policy_fence, 'digest', ARGV[5],
  'at_ms', now)
-- A learner that resumed from an older state takes the steps after it back.
redis.call('ZREMRANGEBYSCORE', policy_steps, '(' .. ARGV[4], '+inf')
if redis.call('ZADD', policy_steps, ARGV[4], ARGV[4]) == 1 then
  redis.call('HINCRBY', learner, 'policies_published', 1)
end
redis.call('ZREMRANGEBYRANK', policy_steps, 0, -4097)
redis.call('HSET', learner, 'policy_step', ARGV[4], 'policy_fence', policy_fence, 'policy_digest', ARGV[5], 'policy_at_ms', now,
  'policy_entry', entry)
return {'OK', now, policy_fence}
