-- The newest sequence set aside; nothing at or below it is set aside again. Letters without one lie behind it.
-- `learner` is the hash of what only the learner writes.
local function newest_letter(learner, dead)
  local newest = redis.call('XREVRANGE', dead, '+', '-', 'COUNT', 1)[1]
  local shown = newest and string.match(newest[1], '^(%d+)') or '0'
  return math.max(tonumber(redis.call('HGET', learner, 'dead_letter_sequence') or '0'), tonumber(shown))
end

-- Sets a record aside under an id, and makes room for it among those that were set aside before: so many of them, and
-- so many bytes. Of a record larger than all that its reason stays.
local function add_letter(learner, dead, id, limits, fields)
  local size = 0
  for i = 2, #fields, 2 do
    size = size + #fields[i]
  end
  if size > limits.bytes then
    for i = 2, #fields, 2 do
      fields[i] = string.sub(fields[i], 1, 1024)
    end
    size = 512 * #fields
  end
  local total = tonumber(redis.call('HGET', learner, 'dead_letter_bytes') or '0') + size
  local count = redis.call('XLEN', dead)
  while count > 0 and (total > limits.bytes or count >= limits.count) do
    local oldest = redis.call('XRANGE', dead, '-', '+', 'COUNT', 1)[1]
    for i = 2, #oldest[2], 2 do
      total = total - #oldest[2][i]
    end
    redis.call('XDEL', dead, oldest[1])
    count = count - 1
  end
  redis.call('XADD', dead, id, unpack(fields))
  redis.call('HSET', learner, 'dead_letter_bytes', plain(count == 0 and size or math.max(total, size)))
  redis.call('HINCRBY', learner, 'dead_letters', 1)
end
