#!lua flags=allow-oom
-- Deletes a run. KEYS are the set of deleted ids, the learner's hash, the run's hash, and every key of the run. ARGV: seconds
-- for which the run's id is kept in that set, or 0 to delete the set as well.
-- Twice: nothing is left to delete, and the id stays.
local run_id = redis.pcall('HGET', KEYS[2], 'run_id') or redis.pcall('HGET', KEYS[3], 'run_id')
for i = 4, #KEYS do
  redis.call('UNLINK', KEYS[i])
end
if ARGV[1] == '0' then
  redis.call('UNLINK', KEYS[1])
elseif type(run_id) == 'string' then
  redis.call('SADD', KEYS[1], run_id)
  redis.call('EXPIRE', KEYS[1], ARGV[1])
end
return {'OK'}
