#!lua flags=allow-oom
-- Takes ownership. KEYS: run. ARGV: new token, holder, heartbeat in milliseconds, 1 to take over, least number - 1.
-- Replies TAKEN, number, server id; or HELD, number, holder, milliseconds its heartbeat is still valid.
-- Twice with one token: the second call returns what the first took.
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
local run, now = KEYS[1], now_ms()
local held = redis.call('HMGET', run, 'fence', 'fence_token', 'fence_holder', 'fence_deadline_ms')
local stored, left = tonumber(held[1] or '0'), tonumber(held[4] or '0') - now
local is_ours = held[2] == ARGV[1]
if not is_ours and ARGV[4] ~= '1' and (held[2] or '') ~= '' and left > 0 then
  return {'HELD', stored, held[3] or '', left}
end
local number = is_ours and stored or math.max(stored, tonumber(ARGV[5])) + 1
redis.call('HSET', run, 'fence', plain(number), 'fence_token', ARGV[1], 'fence_holder', ARGV[2],
  'fence_deadline_ms', plain(now + tonumber(ARGV[3])))
return {'TAKEN', number, server_id()}
