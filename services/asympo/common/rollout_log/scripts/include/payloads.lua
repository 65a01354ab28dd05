-- Tokens of the payloads that entries refer to, between two ids. One by one: an entry of a run that was restored has
-- its payload in it.
local function referred(log, first, last)
  local tokens = {}
  while true do
    local entry = redis.call('XRANGE', log, first, last, 'COUNT', '1')[1]
    if not entry then
      return tokens
    end
    for i = 1, #entry[2], 2 do
      if entry[2][i] == 'payload_at' then
        tokens[#tokens + 1] = entry[2][i + 1]
      end
    end
    first = '(' .. entry[1]
  end
end

local function delete_all(payloads, tokens)
  for i = 1, #tokens, 100 do
    redis.call('HDEL', payloads, unpack(tokens, i, math.min(i + 99, #tokens)))
  end
end

-- Deletes entries before an id, and their payloads with them. A payload that no entry refers to (its holder died
-- before it appended, or came too late) goes too, unless its lease is still out; in a log so long that looking for
-- such payloads takes time, once there are many.
local function trim(log, payloads, leases, first_kept)
  local num_payloads = redis.call('HLEN', payloads)
  if num_payloads > 0 then
    delete_all(payloads, referred(log, '-', '(' .. first_kept))
    num_payloads = redis.call('HLEN', payloads)
  end
  redis.call('XTRIM', log, 'MINID', first_kept)
  local length = redis.call('XLEN', log)
  if num_payloads == 0 or length > 1000 and num_payloads <= length + redis.call('HLEN', leases) + 64 then
    return
  end
  local is_used, unused = {}, {}
  for _, token in ipairs(referred(log, '-', '+')) do
    is_used[token] = true
  end
  for _, token in ipairs(redis.call('HKEYS', payloads)) do
    if not is_used[token] and redis.call('HEXISTS', leases, token) == 0 then
      unused[#unused + 1] = token
    end
  end
  delete_all(payloads, unused)
end
