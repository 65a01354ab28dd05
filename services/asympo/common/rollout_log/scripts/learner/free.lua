#!lua flags=allow-oom
-- Frees slots. KEYS: run, open, wake. ARGV: fence number, token, server id, trained sequence or 0, group ids.
-- Replies OK, how many were open. Twice: the second call finds them freed.
--!include wake
--!include fence
local problem = fence_problem(KEYS[1])
if problem then
  return problem
end
local freed = 0
for i = 5, #ARGV do
  freed = freed + redis.call('SREM', KEYS[2], ARGV[i])
end
if ARGV[4] ~= '0' then
  redis.call('HSET', learner_hash(KEYS[1]), 'trained_sequence', ARGV[4])
end
if freed > 0 then
  wake_all(KEYS[3], 'freed')
end
return {'OK', freed}
