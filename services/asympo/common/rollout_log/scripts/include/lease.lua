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
