-- What somebody waits with who gets nothing: the newest event, and how long at most until a lease runs out.
local function newest_id(stream)
  local newest = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', '1')
  return newest[1] and newest[1][1] or '0-0'
end

local function until_next_expiry(now, deadlines)
  local first = redis.call('ZRANGE', deadlines, '0', '0', 'WITHSCORES')
  return first[2] and math.max(1, math.floor(math.min(30000, tonumber(first[2]) - now + 1))) or 30000
end
