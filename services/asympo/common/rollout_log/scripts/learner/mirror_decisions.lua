#!lua flags=allow-oom
-- Shows what the run has decided. KEYS: run, decisions. ARGV: fence number, token, server id, content.
-- Twice: the same content.
--!include fence
local problem = fence_problem(KEYS[1])
if problem then
  return problem
end
redis.call('SET', KEYS[2], ARGV[4])
return {'OK'}
