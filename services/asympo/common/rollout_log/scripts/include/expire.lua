-- Ends leases whose time is over. At most 200 at once, because a script blocks the whole broker; the next request
-- takes the rest.
local function expire_leases(now, run, leases, deadlines, reissue, wake)
  local expired = redis.call('ZRANGEBYSCORE', deadlines, '-inf', now, 'LIMIT', 0, 200)
  for _, old in ipairs(expired) do
    local stored = redis.call('HGET', leases, old)
    if stored then
      return_prompt(old, (parse_lease(stored)), leases, deadlines, reissue)
    else
      redis.call('ZREM', deadlines, old)
    end
  end
  if #expired > 0 then
    redis.call('HINCRBY', run, 'lease_expiries', #expired)
    wake_all(wake, 'expired')
  end
end
