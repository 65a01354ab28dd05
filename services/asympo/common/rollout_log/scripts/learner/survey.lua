#!lua flags=allow-oom
-- First half of a reconcile: reinstates the fence, makes used numbers used, and lists everything that is out.
-- KEYS: run, commit, holes, open, leases, reissue, set_aside, resting. ARGV: fence number, token, least number, last
-- sequence the learner has consumed, holder, heartbeat in milliseconds, id of the run whose fence this is (empty in one
-- that has none), steps that the run makes or 0, id of the server that the fence was checked against.
-- Replies FENCED, number, holder; DELETED where somebody has deleted the run; MISSING where the broker has lost it; or
-- OK, {number, last sequence, sequences lost, 1 if rolled back, seed, prompts, epoch, position, holes, server id, id of
-- the run}, commit record, open ids, leased ids, queued ids, set-aside ids, pieces of what rests.
-- Twice: fence and sequence are maxima, so the second call finds them done.
--!include time
--!include lease
--!include fence
local run, commit, holes, open, leases, reissue, set_aside, resting = unpack(KEYS)
local names, learner, fields = {'fence', 'fence_token', 'fence_holder', 'seed', 'num_prompts',
  'capacity', 'run_id'}, learner_hash(run), {}
for i, value in ipairs(redis.call('HMGET', learner, unpack(names))) do
  fields[names[i]] = value
end
local cursor = redis.call('HMGET', run, 'last_sequence', 'epoch', 'position')
local stored, ours, consumed = tonumber(fields.fence or '0'), tonumber(ARGV[1]), tonumber(ARGV[4])
if stored >= ours and fields.fence_token ~= ARGV[2] then
  return {'FENCED', stored, fields.fence_holder or ''}
elseif not fields.capacity then
  -- What has neither restarted nor failed over has lost nothing, and who deletes a run leaves no config.
  local is_deleted = redis.call('SISMEMBER', beside(run, 'deleted'), ARGV[7]) == 1
    or server_id() == ARGV[9] and redis.call('EXISTS', beside(run, 'config')) == 0
  return {is_deleted and 'DELETED' or 'MISSING'}
elseif ARGV[7] ~= '' and fields.run_id ~= ARGV[7] then
  -- Deleted, and created anew by somebody else, which no broker that goes back in time does.
  return {'FENCED', stored, fields.fence_holder or ''}
end
for i, name in ipairs({'last_sequence', 'epoch', 'position'}) do
  if not whole(cursor[i]) then
    cursor[i] = '0'
    redis.call('HSET', run, name, cursor[i])
  end
end
local number = math.max(stored, ours, tonumber(ARGV[3]))
redis.call('HSET', learner, 'fence', plain(number), 'fence_token', ARGV[2], 'fence_holder', ARGV[5],
  'fence_deadline_ms', plain(now_ms() + tonumber(ARGV[6])), 'total_steps', ARGV[8])

local last = tonumber(cursor[1])
if consumed > last then
  redis.call('HSET', holes, plain(last + 1), plain(consumed))
  redis.call('HSET', run, 'last_sequence', plain(consumed))
  last = consumed
end
local lost, flat = 0, redis.call('HGETALL', holes)
for i = 1, #flat, 2 do
  if string.sub(flat[i + 1], 1, 1) ~= '0' then
    lost = lost + tonumber(flat[i + 1]) - tonumber(flat[i]) + 1
  end
end

local leased = {}
for _, stored_lease in ipairs(redis.call('HVALS', leases)) do
  leased[#leased + 1] = (parse_lease(stored_lease))
end
return {
  'OK',
  {number, last, lost, (stored < ours or lost > 0) and 1 or 0, fields.seed, fields.num_prompts, cursor[2], cursor[3],
    redis.call('HLEN', holes), server_id(), fields.run_id or ''},
  redis.call('HMGET', commit, 'sequence', 'state_name', 'step', 'fence'),
  redis.call('SMEMBERS', open),
  leased,
  redis.call('LRANGE', reissue, 0, -1),
  redis.call('HKEYS', set_aside),
  redis.call('HGETALL', resting),
}
