#!lua flags=allow-oom
-- Gives a prompt back. KEYS: run, leases, deadlines, reissue, wake, failures, set_aside.
-- ARGV: token, 1 if the prompt itself failed, reason. Replies 1, or 0 when the lease was lost.
-- Twice: the second call finds no lease and changes nothing.
-- Wakes everyone who was refused and waits. Old events may go: a waiter only needs the newest.
local function wake_all(wake, why)
  redis.call('XADD', wake, 'MAXLEN', '64', '*', 'why', why)
end
-- A stored lease is "<group id>|<policy step>|<granted ms>|<holder>".
local function parse_lease(stored)
  local group_id, policy_step, granted, holder = string.match(stored, '^([^|]*)|(%-?%d+)|(%d+)|(.*)$')
  return group_id, tonumber(policy_step), tonumber(granted), holder
end

-- Ends a lease without a group: its prompt is the next to be issued again.
local function return_prompt(token, group_id, leases, deadlines, reissue)
  redis.call('RPUSH', reissue, group_id)
  redis.call('HDEL', leases, token)
  redis.call('ZREM', deadlines, token)
end
local run, leases, deadlines, reissue, wake, failures, set_aside = unpack(KEYS)
local stored = redis.call('HGET', leases, ARGV[1])
if not stored then
  return {0}
end
local group_id = (parse_lease(stored))
local is_given_up = false
if ARGV[2] == '1' then
  redis.call('HINCRBY', run, 'prompt_failures', 1)
  local count = redis.call('HINCRBY', failures, group_id, 1)
  is_given_up = count >= tonumber(redis.call('HGET', run, 'max_prompt_failures'))
end
if is_given_up then
  redis.call('HSET', set_aside, group_id, ARGV[3])
  redis.call('HDEL', failures, group_id)
  redis.call('HDEL', leases, ARGV[1])
  redis.call('ZREM', deadlines, ARGV[1])
else
  return_prompt(ARGV[1], group_id, leases, deadlines, reissue)
end
wake_all(wake, 'handed_back')
return {1}
