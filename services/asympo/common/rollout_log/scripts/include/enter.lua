-- Adds an entry under the run's next number, the first write of its script. Replies that number; or nil and an error
-- for the script to reply. Where an entry was added by hand, or the last number written over, the learner sets that
-- right, so it is one that callers ask again after.
local function enter(log, last, ...)
  local sequence = whole(last or '0')
  if not sequence then
    return nil, redis.error_reply('STRAY the number of the last entry was written over')
  end
  local added = redis.pcall('XADD', log, plain(sequence + 1) .. '-0', ...)
  if not added.err then
    return sequence + 1
  end
  local is_in_the_way = string.find(added.err, 'equal or smaller') or string.find(added.err, 'exhausted')
  return nil, is_in_the_way and redis.error_reply('STRAY an entry is in the way') or added
end
