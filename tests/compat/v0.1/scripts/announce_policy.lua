#!lua flags=allow-oom
-- Announces a policy. KEYS: run, policies, policy_steps. ARGV: fence number, token, server id, step, digest.
-- It wakes those who wait for a policy, not those who wait for a slot: they read the stream of announcements.
-- Replies OK, when (milliseconds), fence it was announced under. Twice: the newest announcement is left as it is.
-- Milliseconds of the broker's own clock: the only clock that decides anything.
local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- Lua writes large numbers in scientific notation; stored numbers must be plain.
local function plain(number)
  return string.format('%.0f', number)
end
-- Who this broker is: its process and the history it continues. A restart or a fail-over changes it.
local function server_id()
  local info = redis.call('INFO', 'server', 'replication')
  return string.match(info, 'run_id:(%x+)') .. ':' .. string.match(info, 'master_replid:(%x+)')
end

-- Learner scripts start with ARGV = fence number, token, server id. Returns what is wrong with them, or nil.
-- A stored number below ours means the broker went back in time: numbers only grow. Our own token under another
-- number means that a reconcile of ours has just raised it, and this call still carries the old one.
local function fence_problem(run)
  local held = redis.call('HMGET', run, 'fence', 'fence_token', 'fence_holder')
  local stored, ours = tonumber(held[1] or '0'), tonumber(ARGV[1])
  if stored >= ours and held[2] ~= ARGV[2] then
    return {'FENCED', stored, held[3] or ''}
  end
  if stored ~= ours or server_id() ~= ARGV[3] then
    return {'CHANGED'}
  end
  return nil
end
local run, policies, policy_steps = unpack(KEYS)
local problem = fence_problem(run)
if problem then
  return problem
end
local newest = redis.call('HMGET', run, 'policy_step', 'policy_digest', 'policy_at_ms', 'policy_fence')
if newest[1] == ARGV[4] and newest[2] == ARGV[5] then
  return {'OK', newest[3], newest[4]}
end
local now = plain(now_ms())
local entry = redis.call('XADD', policies, 'MAXLEN', '4096', '*', 'step', ARGV[4], 'fence', ARGV[1], 'digest', ARGV[5],
  'at_ms', now)
-- A learner that resumed from an older state takes the steps after it back.
redis.call('ZREMRANGEBYSCORE', policy_steps, '(' .. ARGV[4], '+inf')
if redis.call('ZADD', policy_steps, ARGV[4], ARGV[4]) == 1 then
  redis.call('HINCRBY', run, 'policies_published', 1)
end
redis.call('ZREMRANGEBYRANK', policy_steps, 0, -4097)
redis.call('HSET', run, 'policy_step', ARGV[4], 'policy_fence', ARGV[1], 'policy_digest', ARGV[5], 'policy_at_ms', now,
  'policy_entry', entry)
return {'OK', now, ARGV[1]}
