#!lua flags=allow-oom
-- Extends leases. KEYS: run, leases, deadlines. ARGV: tokens. Replies 1 (kept) or 0 (lost) for each.
-- Twice: extended from the later call, never beyond max_lease_seconds after the grant.
--!include time
--!include lease
--!include beside
local run, leases, deadlines = unpack(KEYS)
local now = now_ms()
local limits = redis.call('HMGET', learner_hash(run), 'lease_ms', 'max_lease_ms')
local kept = {}
for i, token in ipairs(ARGV) do
  local stored, deadline = redis.call('HGET', leases, token), redis.call('ZSCORE', deadlines, token)
  kept[i] = 0
  if stored and deadline and tonumber(deadline) > now then
    local _, _, granted = parse_lease(stored)
    if granted and limits[1] and limits[2] then
      local last = granted + tonumber(limits[2])
      redis.call('ZADD', deadlines, 'XX', math.min(now + tonumber(limits[1]), last), token)
    end
    -- Kept, though not for longer, where the broker has lost the limits until the learner writes them again.
    kept[i] = granted and 1 or 0
  end
end
return kept
