-- A stored lease is "<group id>|<policy step>|<granted ms>|<holder>"; nil for what is none.
local function parse_lease(stored)
  local group_id, policy_step, granted, holder = string.match(stored, '^([^|]*)|(%-?%d+)|(%d+)|(.*)$')
  return group_id, tonumber(policy_step), tonumber(granted), holder
end

-- Is this a prompt's own id, "<epoch>-<index>"?
local function is_own_id(group_id)
  local epoch, index = string.match(group_id or '', '^(%d+)-(%d+)$')
  return epoch ~= nil and #epoch <= 15 and #index <= 15
end

-- Ends a lease without a group: its prompt is the next to be issued again. One that names no prompt just ends.
local function return_prompt(token, group_id, leases, deadlines, reissue)
  if is_own_id(group_id) then
    redis.call('RPUSH', reissue, group_id)
  end
  redis.call('HDEL', leases, token)
  redis.call('ZREM', deadlines, token)
end
