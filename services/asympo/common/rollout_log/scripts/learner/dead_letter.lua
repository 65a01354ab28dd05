#!lua flags=allow-oom
-- Sets a record aside with its reason and frees its slot; it stays in the log until commit.
-- KEYS: run, dead, open, wake. ARGV: fence number, token, server id, how many to keep, bytes to keep, sequence, group
-- id, producer, reason, payload. Twice, or again after a resume: letters are written in log order under their sequence,
-- so one at or below the newest is there already.
--!include time
--!include wake
--!include fence
--!include letter
local run, dead, open, wake = unpack(KEYS)
local problem = fence_problem(run)
if problem then
  return problem
end
local learner = learner_hash(run)
if tonumber(ARGV[6]) > newest_letter(learner, dead) then
  add_letter(learner, dead, ARGV[6] .. '-0', {count = tonumber(ARGV[4]), bytes = tonumber(ARGV[5])}, {'group_id', ARGV[7],
    'producer', ARGV[8], 'reason', ARGV[9], 'payload', ARGV[10], 'at_ms', plain(now_ms())})
  redis.call('HSET', learner, 'dead_letter_sequence', ARGV[6])
end
if redis.call('SREM', open, ARGV[7]) == 1 then
  wake_all(wake, 'freed')
end
return {'OK'}
