#!lua flags=allow-oom
-- Gives a prompt back. KEYS: run, leases, deadlines, reissue, wake, failures, set_aside.
-- ARGV: token, 1 if the prompt itself failed, reason. Replies 1, or 0 when the lease was lost.
-- Twice: the second call finds no lease and changes nothing.
--!include wake
--!include lease
--!include beside
local run, leases, deadlines, reissue, wake, failures, set_aside = unpack(KEYS)
local stored = redis.call('HGET', leases, ARGV[1])
if not stored then
  return {0}
end
local group_id = (parse_lease(stored))
local is_given_up = false
if ARGV[2] == '1' and is_own_id(group_id) then
  redis.call('HINCRBY', run, 'prompt_failures', 1)
  local count = redis.call('HINCRBY', failures, group_id, 1)
  local limit = redis.call('HGET', learner_hash(run), 'max_prompt_failures')
  -- Without one, the broker has lost it: the next failure will tell.
  is_given_up = limit and count >= tonumber(limit)
end
if is_given_up and is_own_id(group_id) then
  redis.call('HSET', set_aside, group_id, string.sub(ARGV[3], 1, 1000))
  redis.call('HDEL', failures, group_id)
  redis.call('HDEL', leases, ARGV[1])
  redis.call('ZREM', deadlines, ARGV[1])
else
  return_prompt(ARGV[1], group_id, leases, deadlines, reissue)
end
wake_all(wake, 'handed_back')
return {1}
