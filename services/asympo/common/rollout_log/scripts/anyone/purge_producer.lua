#!lua flags=allow-oom
-- Takes entries of one producer out of the log that nobody has trained; readers step over their numbers.
-- KEYS: run, log, open, reissue, holes, wake. ARGV: producer, after this sequence, entries to look at, prefix of the
-- ids it chose itself. Replies the last sequence looked at (0: no more), entries taken out. Prompts that were leased
-- are issued again. Twice: they are gone.
--!include time
--!include wake
--!include beside
local run, log, open, reissue, holes, wake = unpack(KEYS)
local at = redis.call('HMGET', learner_hash(run), 'committed_sequence', 'trained_sequence')
local after = math.max(tonumber(ARGV[2]), tonumber(at[1] or '0'), tonumber(at[2] or '0'))
local last, taken = 0, 0
local from = '(' .. plain(after) .. '-18446744073709551615'
local to = (redis.call('HGET', run, 'last_sequence') or '0') .. '-0'
for _, entry in ipairs(redis.call('XRANGE', log, from, to, 'COUNT', ARGV[3])) do
  local id, values = entry[1], {}
  for i = 1, #entry[2], 2 do
    values[entry[2][i]] = entry[2][i + 1]
  end
  local number, part = string.match(id, '^(%d+)-(%d+)$')
  last = tonumber(number)
  -- Another part is no append's entry; the learner takes it out.
  if values.producer == ARGV[1] and part == '0' then
    redis.call('HSET', holes, plain(last), plain(last))
    redis.call('XDEL', log, id)
    if redis.call('SREM', open, values.group_id) == 1
      and string.sub(values.group_id, 1, #ARGV[4]) ~= ARGV[4] then
      redis.call('RPUSH', reissue, values.group_id)
    end
    taken = taken + 1
  end
end
if taken > 0 then
  wake_all(wake, 'freed')
end
return {last, taken}
