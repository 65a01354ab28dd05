#!lua flags=allow-oom
-- Makes the cursor durable: record, freed ids, trim, in one script.
-- KEYS: run, commit, log, open, leases, reissue, holes, wake, payloads. ARGV: fence number, token, server id, sequence,
-- state name, step, number of groups consumed, their ids.
-- Only entries up to the committed sequence are ever deleted. Twice: the record is there, ids are freed, entries gone.
--!include time
--!include wake
--!include fence
--!include payloads
local run, commit, log, open, leases, reissue, holes, wake, payloads = unpack(KEYS)
local problem = fence_problem(run)
if problem then
  return problem
end
local learner, fields = learner_hash(run), {}
local function read(key, names)
  for i, value in ipairs(redis.call('HMGET', key, unpack(names))) do
    fields[names[i]] = value
  end
end
read(learner, {'committed_sequence', 'state', 'num_prompts', 'num_epochs'})
read(run, {'last_sequence', 'epoch', 'position'})
local sequence, committed = tonumber(ARGV[4]), tonumber(fields.committed_sequence)
if not committed or sequence > (whole(fields.last_sequence) or -1) then
  return {'CHANGED'}
end
if sequence >= committed then
  redis.call('HSET', commit, 'sequence', plain(sequence), 'state_name', ARGV[5], 'step', ARGV[6], 'fence', ARGV[1],
    'at_ms', plain(now_ms()))
  redis.call('HSET', learner, 'committed_sequence', plain(sequence))
end
if sequence > committed then
  redis.call('HINCRBY', learner, 'trained', ARGV[7])
end
local freed = 0
for i = 8, #ARGV do
  freed = freed + redis.call('SREM', open, ARGV[i])
end
trim(log, payloads, leases, plain(math.max(sequence, committed) + 1) .. '-0')
local flat = redis.call('HGETALL', holes)
for i = 1, #flat, 2 do
  if tonumber(flat[i + 1]) <= sequence then
    redis.call('HDEL', holes, flat[i])
  end
end
if freed > 0 then
  wake_all(wake, 'freed')
end
local epoch, num_epochs = tonumber(fields.epoch), tonumber(fields.num_epochs)
local is_last_issued = num_epochs > 0 and (epoch >= num_epochs
  or (epoch == num_epochs - 1 and tonumber(fields.position) >= tonumber(fields.num_prompts)))
if is_last_issued and sequence == tonumber(fields.last_sequence) and fields.state ~= 'failed'
  and redis.call('HLEN', leases) == 0 and redis.call('LLEN', reissue) == 0 and redis.call('SCARD', open) == 0 then
  redis.call('HSET', learner, 'state', 'finished', 'state_reason', 'every prompt of every epoch was answered')
  wake_all(wake, 'finished')
end
return {'OK'}
