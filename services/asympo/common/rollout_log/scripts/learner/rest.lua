#!lua flags=allow-oom
-- Says which prompts an epoch passes over. KEYS: run, resting. ARGV: fence number, token, server id, first epoch to
-- keep, epoch, 1 to put back what held in it, then the pieces, 8,192 prompts each.
-- The first lease of an epoch settles its order: from then on nothing is changed, only put back after the broker lost
-- it. Replies OK, epoch of the prompt cursor. Twice: the same pieces.
--!include fence
local run, resting = unpack(KEYS)
local problem = fence_problem(run)
if problem then
  return problem
end
local begun = whole(redis.call('HGET', run, 'epoch'))
if not begun then
  return {'CHANGED'}
end
for _, field in ipairs(redis.call('HKEYS', resting)) do
  if (tonumber(string.match(field, '^(%d+)/')) or -1) < tonumber(ARGV[4]) then
    redis.call('HDEL', resting, field)
  end
end
if tonumber(ARGV[5]) > begun or ARGV[6] == '1' then
  for i = 7, #ARGV do
    redis.call('HSET', resting, ARGV[5] .. '/' .. (i - 7), ARGV[i])
  end
end
return {'OK', begun}
