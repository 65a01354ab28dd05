#!lua flags=allow-oom
-- Second half of a reconcile: applies the repairs worked out from a survey, in one script.
-- KEYS: run, commit, log, holes, open, leases, deadlines, reissue, set_aside, wake. ARGV: fence number, token, server
-- id; prompt cursor of the survey (epoch, position) and its number of holes; the new cursor; commit record of the
-- training state (sequence, state name, step, fence; sequence 0 for none); then five lists, each led by its length: ids
-- to drop everywhere, ids to drop from open, ids to add to open, ids to issue again, sequences that were given out
-- twice. Replies OK, or RETRY when a prompt was issued or an entry purged since the survey. Twice: either that is so by
-- now and the caller surveys again, or every change finds itself made (an id is issued again only if it is nowhere).
--!include wake
--!include lease
--!include fence
local run, commit, log, holes, open, leases, deadlines, reissue, set_aside, wake = unpack(KEYS)
local problem = fence_problem(run)
if problem then
  return problem
end
local cursor = redis.call('HMGET', run, 'epoch', 'position')
if cursor[1] ~= ARGV[4] or cursor[2] ~= ARGV[5] or redis.call('HLEN', holes) ~= tonumber(ARGV[6]) then
  return {'RETRY'}
end

local next_argument = 13
local function next_list()
  local items, length = {}, tonumber(ARGV[next_argument])
  for i = 1, length do
    items[i] = ARGV[next_argument + i]
  end
  next_argument = next_argument + length + 1
  return items
end
local covered, lost_open, reopened, reissued, forked = next_list(), next_list(), next_list(), next_list(), next_list()

for _, sequence in ipairs(forked) do
  redis.call('HSET', holes, sequence, sequence)
  redis.call('XDEL', log, sequence .. '-0')
end
local token_of = {}
local flat = redis.call('HGETALL', leases)
for i = 1, #flat, 2 do
  token_of[(parse_lease(flat[i + 1])) or ''] = flat[i]
end
for _, group_id in ipairs(covered) do
  redis.call('SREM', open, group_id)
  redis.call('LREM', reissue, 0, group_id)
  local token = token_of[group_id]
  if token then
    redis.call('HDEL', leases, token)
    redis.call('ZREM', deadlines, token)
  end
end
for _, group_id in ipairs(lost_open) do
  redis.call('SREM', open, group_id)
end
for _, group_id in ipairs(reopened) do
  redis.call('SADD', open, group_id)
end
local is_queued = {}
for _, group_id in ipairs(redis.call('LRANGE', reissue, 0, -1)) do
  is_queued[group_id] = true
end
for _, group_id in ipairs(reissued) do
  local is_placed = is_queued[group_id] or token_of[group_id] or redis.call('SISMEMBER', open, group_id) == 1
    or redis.call('HEXISTS', set_aside, group_id) == 1
  if not is_placed then
    redis.call('RPUSH', reissue, group_id)
  end
end

redis.call('HSET', run, 'epoch', ARGV[7], 'position', ARGV[8])
local known = redis.call('HMGET', commit, 'sequence', 'fence')
local sequence, known_sequence = tonumber(ARGV[9]), tonumber(known[1] or '0')
if sequence > known_sequence or (sequence > 0 and sequence == known_sequence
  and tonumber(ARGV[12]) > tonumber(known[2] or '0')) then
  redis.call('HSET', commit, 'sequence', ARGV[9], 'state_name', ARGV[10], 'step', ARGV[11], 'fence', ARGV[12])
end
-- Of the two, the broker may have lost one.
redis.call('HSET', learner_hash(run), 'committed_sequence', string.format('%.0f', math.max(sequence, known_sequence)))
wake_all(wake, 'reconciled')
return {'OK'}
