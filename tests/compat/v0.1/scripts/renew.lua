#!lua flags=allow-oom
-- Extends leases. KEYS: run, leases, deadlines. ARGV: tokens. Replies 1 (kept) or 0 (lost) for each.
-- Twice: extended from the later call, never beyond max_lease_seconds after the grant.
-- Milliseconds of the broker's own clock: the only clock that decides anything.
local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- Lua writes large numbers in scientific notation; stored numbers must be plain.
local function plain(number)
  return string.format('%.0f', number)
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
local run, leases, deadlines = unpack(KEYS)
local now = now_ms()
local limits = redis.call('HMGET', run, 'lease_ms', 'max_lease_ms')
local kept = {}
for i, token in ipairs(ARGV) do
  local stored, deadline = redis.call('HGET', leases, token), redis.call('ZSCORE', deadlines, token)
  kept[i] = 0
  if stored and deadline and tonumber(deadline) > now then
    local _, _, granted = parse_lease(stored)
    local last = granted + tonumber(limits[2])
    redis.call('ZADD', deadlines, 'XX', math.min(now + tonumber(limits[1]), last), token)
    kept[i] = 1
  end
end
return kept
