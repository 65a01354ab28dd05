-- Ends leases whose time is over. At most 200 at once, because a script blocks the whole broker; the next request
-- takes the rest. Needs `beside`.
local function end_leases(expired, run, leases, deadlines, reissue, wake)
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
  return #expired > 0
end

local function expire_leases(now, run, leases, deadlines, reissue, wake)
  local expired = redis.call('ZRANGEBYSCORE', deadlines, '-inf', plain(now), 'LIMIT', '0', '200')
  return #expired > 0 and end_leases(expired, run, leases, deadlines, reissue, wake)
end

-- So do those that no script has granted, or they would hold a slot for good: without a deadline, or with one further
-- off than any can be. Looked for only where a slot is missing. Says whether there were any.
local function expire_strays(now, longest, num_leases, run, leases, deadlines, reissue, wake)
  local strays = longest and redis.call('ZREVRANGEBYSCORE', deadlines, '+inf', plain(now + longest + 1),
    'LIMIT', '0', '200') or {}
  if num_leases > redis.call('ZCARD', deadlines) then
    for _, token in ipairs(redis.call('HRANDFIELD', leases, 200)) do
      if not redis.call('ZSCORE', deadlines, token) then
        table.insert(strays, token)
      end
    end
  end
  return #strays > 0 and end_leases(strays, run, leases, deadlines, reissue, wake)
end
