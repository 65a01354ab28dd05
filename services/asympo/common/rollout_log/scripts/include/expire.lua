-- Ends leases whose time is over. At most 200 at once, because a script blocks the whole broker; the next request
-- takes the rest.
-- So do those that no script has granted, or they would hold a slot for good: without a deadline, or with one further
-- off than any can be. Needs `beside`.
local function expire_leases(now, run, leases, deadlines, reissue, wake)
  local expired = redis.call('ZRANGEBYSCORE', deadlines, '-inf', now, 'LIMIT', 0, 200)
  local longest = whole(redis.call('HGET', learner_hash(run), 'max_lease_ms'))
  if longest then
    for _, token in ipairs(redis.call('ZREVRANGEBYSCORE', deadlines, '+inf', plain(now + longest + 1),
      'LIMIT', 0, 200)) do
      table.insert(expired, token)
    end
  end
  if redis.call('HLEN', leases) > redis.call('ZCARD', deadlines) then
    for _, token in ipairs(redis.call('HRANDFIELD', leases, 200)) do
      if not redis.call('ZSCORE', deadlines, token) then
        table.insert(expired, token)
      end
    end
  end
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
