#!lua flags=allow-oom
-- Sets a record aside with its reason and frees its slot; it stays in the log until commit.
-- KEYS: run, dead, open, wake. ARGV: fence number, token, server id, how many to keep, sequence, group id, producer,
-- reason, payload. Twice, or again after a resume: letters are written in log order under their sequence, so one at
-- or below the newest is there already.
--!include time
--!include wake
--!include fence
local run, dead, open, wake = unpack(KEYS)
local problem = fence_problem(run)
if problem then
  return problem
end
local newest = redis.call('XREVRANGE', dead, '+', '-', 'COUNT', 1)
local newest_sequence = newest[1] and tonumber(string.match(newest[1][1], '^(%d+)')) or 0
if tonumber(ARGV[5]) > newest_sequence then
  redis.call('XADD', dead, 'MAXLEN', ARGV[4], ARGV[5] .. '-0', 'group_id', ARGV[6], 'producer', ARGV[7],
    'reason', ARGV[8], 'payload', ARGV[9], 'at_ms', plain(now_ms()))
  redis.call('HINCRBY', run, 'dead_letters', 1)
end
if redis.call('SREM', open, ARGV[6]) == 1 then
  wake_all(wake, 'freed')
end
return {'OK'}
