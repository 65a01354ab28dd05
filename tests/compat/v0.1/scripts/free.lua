#!lua flags=allow-oom
-- Frees slots. KEYS: run, open, wake. ARGV: fence number, token, server id, trained sequence or 0, group ids.
-- Replies OK, how many were open. Twice: the second call finds them freed.
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
local problem = fence_problem(KEYS[1])
if problem then
  return problem
end
local freed = 0
for i = 5, #ARGV do
  freed = freed + redis.call('SREM', KEYS[2], ARGV[i])
end
if ARGV[4] ~= '0' then
  redis.call('HSET', KEYS[1], 'trained_sequence', ARGV[4])
end
if freed > 0 then
  wake_all(KEYS[3], 'freed')
end
return {'OK', freed}
