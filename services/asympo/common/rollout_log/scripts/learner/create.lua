#!lua
-- Creates a run unless it exists. KEYS: config, run, learner, wake. ARGV: config JSON, then field, value, ... of the
-- learner's hash.
-- Replies CREATED or JOINED with the stored JSON. Twice: the second call joins what the first created.
local stored = redis.call('GET', KEYS[1])
if stored then
  return {'JOINED', stored}
end
redis.call('SET', KEYS[1], ARGV[1])
redis.call('HSET', KEYS[2], 'last_sequence', 0, 'epoch', 0, 'position', 0)
redis.call('HSET', KEYS[3], 'state', 'created', 'state_reason', '', 'committed_sequence', 0)
for i = 2, #ARGV, 2 do
  redis.call('HSET', KEYS[3], ARGV[i], ARGV[i + 1])
end
redis.call('XADD', KEYS[4], '*', 'why', 'created')
return {'CREATED', ARGV[1]}
