#!lua flags=allow-oom
-- Moves a run to a state. KEYS: run, wake. ARGV: fence number (0: a person's command), token, server id, state, reason.
-- Twice: the same state again, and one more event, which only makes waiters look once more.
-- Wakes everyone who was refused and waits. Old events may go: a waiter only needs the newest.
local function wake_all(wake, why)
  redis.call('XADD', wake, 'MAXLEN', '64', '*', 'why', why)
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
if ARGV[1] ~= '0' then
  local problem = fence_problem(KEYS[1])
  if problem then
    return problem
  end
end
if redis.call('HEXISTS', KEYS[1], 'capacity') == 0 then
  return {'MISSING'}
end
redis.call('HSET', KEYS[1], 'state', ARGV[4], 'state_reason', ARGV[5])
wake_all(KEYS[2], ARGV[4])
return {'OK'}
