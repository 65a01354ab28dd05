#!lua flags=allow-oom
-- Takes ownership. KEYS: run. ARGV: new token, holder, heartbeat in milliseconds, 1 to take over, least number - 1,
-- steps that the run makes or 0.
-- Replies TAKEN, number, server id (empty where the broker has lost the run), id of the run; or HELD, number, holder,
-- milliseconds its heartbeat is still valid.
-- Twice with one token: the second call returns what the first took.
--!include time
--!include fence
local learner, now = learner_hash(KEYS[1]), now_ms()
local held = redis.call('HMGET', learner, 'fence', 'fence_token', 'fence_holder', 'fence_deadline_ms',
  'committed_sequence')
local stored, left = tonumber(held[1] or '0'), tonumber(held[4] or '0') - now
local is_ours = held[2] == ARGV[1]
if not is_ours and ARGV[4] ~= '1' and (held[2] or '') ~= '' and left > 0 then
  return {'HELD', stored, held[3] or '', left}
end
local number = is_ours and stored or math.max(stored, tonumber(ARGV[5])) + 1
redis.call('HSET', learner, 'fence', plain(number), 'fence_token', ARGV[1], 'fence_holder', ARGV[2],
  'fence_deadline_ms', plain(now + tonumber(ARGV[3])), 'total_steps', ARGV[6] or '0')
if not is_ours then
  -- What the owner before had read is in nobody's hands, and what it had trained and not committed is trained again.
  redis.call('HSET', learner, 'read_sequence', 0, 'trained_sequence', held[5] or '0')
end
-- Without a server whose run it could be, a survey has it created again.
local server = redis.call('HEXISTS', learner, 'capacity') == 1 and server_id() or ''
return {'TAKEN', number, server, redis.call('HGET', learner, 'run_id') or ''}
