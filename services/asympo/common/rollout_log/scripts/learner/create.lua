#!lua
-- Creates a run unless it exists. KEYS: config, run, learner, wake. ARGV: config JSON, id of the run with these settings
-- that the newest training state is of and the server that this was saved on (both empty for none), then field, value,
-- ... of the learner's hash: first the digest of the config, and the id of a new run among them.
-- Replies CREATED or JOINED with the stored JSON. Twice: the second call joins what the first created.
--!include fence
local stored = redis.call('GET', KEYS[1])
if stored and (redis.call('HEXISTS', KEYS[3], 'capacity') == 1 or redis.call('HEXISTS', KEYS[2], 'capacity') == 1) then
  return {'JOINED', stored}
end
redis.call('SET', KEYS[1], ARGV[1])
-- Of a run that is lost in part, numbers that were given out stay used.
for _, name in ipairs({'last_sequence', 'epoch', 'position'}) do
  redis.call('HSETNX', KEYS[2], name, 0)
end
-- What was written there while the learner's hash was lost would pass for that one, should it be lost again.
redis.call('HDEL', KEYS[2], 'fence', 'fence_token', 'fence_holder', 'fence_deadline_ms', 'total_steps', 'read_sequence',
  'trained_sequence', 'dead_letter_sequence', 'dead_letter_bytes')
redis.call('HSET', KEYS[3], 'state', 'created', 'state_reason', '', 'committed_sequence', 0)
-- And so does its id, if the settings do, unless somebody has deleted the run: where its id says so, or the server that
-- the state was saved on has neither restarted nor failed over and thus has lost nothing.
local known = redis.call('HMGET', KEYS[3], 'config_digest', 'run_id')
local run_id = (known[1] == ARGV[5] and known[2]) or (server_id() ~= ARGV[3] and ARGV[2])
for i = 4, #ARGV, 2 do
  redis.call('HSET', KEYS[3], ARGV[i], ARGV[i + 1])
end
if run_id and run_id ~= '' and redis.call('SISMEMBER', beside(KEYS[2], 'deleted'), run_id) == 0 then
  redis.call('HSET', KEYS[3], 'run_id', run_id)
end
redis.call('XADD', KEYS[4], '*', 'why', 'created')
return {'CREATED', ARGV[1]}
