#!lua flags=allow-oom
-- Entries of the log in order, for the run's owner on the broker it knows. KEYS: run, log. ARGV: fence number, token, server
-- id, then as for read.lua. Replies FENCED or CHANGED, or as that one.
-- Notes the last entry it replies: a purge leaves what the learner has in its hands. Twice: the same again.
--!include fence
--!include entries
local run, log = unpack(KEYS)
local problem = fence_problem(run)
if problem then
  return problem
end
local found = entries_of(run, log, unpack(ARGV, 4))
if #found > 1 then
  redis.call('HSET', learner_hash(run), 'read_sequence', (string.match(found[#found - 2], '^%d+')))
end
return found
