--!include beside
-- Who this broker is: its process and the history it continues. A restart or a fail-over changes it.
local function server_id()
  local info = redis.call('INFO', 'server', 'replication')
  return string.match(info, 'run_id:(%x+)') .. ':' .. string.match(info, 'master_replid:(%x+)')
end

-- Learner scripts start with ARGV = fence number, token, server id. Returns what is wrong with them, or nil.
-- A stored number below ours means the broker went back in time: numbers only grow. Our own token under another
-- number means that a reconcile of ours has just raised it, and this call still carries the old one.
local function fence_problem(run)
  local held = redis.call('HMGET', learner_hash(run), 'fence', 'fence_token', 'fence_holder')
  local stored, ours = tonumber(held[1] or '0'), tonumber(ARGV[1])
  if stored >= ours and held[2] ~= ARGV[2] then
    return {'FENCED', stored, held[3] or ''}
  end
  if stored ~= ours or server_id() ~= ARGV[3] then
    return {'CHANGED'}
  end
  return nil
end
