#!lua flags=allow-oom
-- Sets a record aside with its reason and frees its slot; it stays in the log until commit.
-- KEYS: run, dead, open, wake. ARGV: fence number, token, server id, how many to keep, sequence, group id, producer,
-- reason, payload. Twice, or again after a resume: letters are written in log order under their sequence, so one at
-- or below the newest is there already.
-- Milliseconds of the broker's own clock: the only clock that decides anything.
local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- Lua writes large numbers in scientific notation; stored numbers must be plain.
local function plain(number)
  return string.format('%.0f', number)
end
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
local run, dead, open, wake = unpack(KEYS)
local problem = fence_problem(run)
if problem then
  return problem
end
local newest = redis.call('XREVRANGE', dead, '+', '-', 'COUNT', 1)
local newest_sequence = newest[1] and tonumber(string.match(newest[1][1], '^(%d+)')) or 0
if tonumber(ARGV[5]) > newest_sequence then
  redis.call('XADD', dead, 'MAXLEN', ARGV[4], ARGV[5] .. '-0', 'group_id', ARGV[6], 'producer', ARGV[7],
    'reason', ARGV[8], 'payload', ARGV[9], 'at_ms', plain(now_ms()))
  redis.call('HINCRBY', run, 'dead_letters', 1)
end
if redis.call('SREM', open, ARGV[6]) == 1 then
  wake_all(wake, 'freed')
end
return {'OK'}
