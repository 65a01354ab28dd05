-- What evaluators leave, oldest first: id, value, ... behind an id; a value that is longer than the scripts that store
-- it allow is replied as empty.
local function list_results(stream, name, after, count)
  local found, from = {}, '(' .. after
  for _ = 1, tonumber(count) do
    local entry = redis.call('XRANGE', stream, from, '+', 'COUNT', 1)[1]
    if not entry then
      break
    end
    local value = ''
    for i = 1, #entry[2], 2 do
      if entry[2][i] == name and #entry[2][i + 1] <= 16384 then
        value = entry[2][i + 1]
      end
    end
    found[#found + 1] = entry[1]
    found[#found + 1] = value
    from = '(' .. entry[1]
  end
  return found
end

-- Keeps a value among the newest; nothing, while no other was kept in between.
local function keep_result(stream, value, ...)
  if #value > 16384 then
    return redis.error_reply('ERR a short result is needed')
  end
  local newest = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)
  if newest[1] and newest[1][2][2] == value then
    return {'OK'}
  end
  redis.call('XADD', stream, 'MAXLEN', ...)
  return {'OK'}
end
