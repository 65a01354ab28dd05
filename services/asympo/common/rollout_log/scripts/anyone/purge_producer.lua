#!lua flags=allow-oom
-- Takes entries of one producer out of the log that nobody has trained; readers step over their numbers. Those that a
-- live learner has in its hands stay: it is about to train them.
-- KEYS: run, log, open, reissue, holes, wake. ARGV: producer, after this sequence, entries to look at, prefix of the
-- ids it chose itself. Replies the last sequence looked at (0: no more), entries taken out, entries that stay. Prompts
-- that were leased are issued again. Twice: they are gone.
--!include time
--!include wake
--!include beside
local run, log, open, reissue, holes, wake = unpack(KEYS)
local at = redis.call('HMGET', learner_hash(run), 'committed_sequence', 'trained_sequence', 'read_sequence',
  'fence_deadline_ms')
local is_owned = tonumber(at[4] or '0') > now_ms()
-- What a learner that is gone has read, or has trained and not committed, is in nobody's hands.
local trained, read = tonumber(is_owned and at[2] or '0'), tonumber(is_owned and at[3] or '0')
local after = math.max(tonumber(ARGV[2]), tonumber(at[1] or '0'), trained)
local last, taken, left = 0, 0, 0
local from = '(' .. plain(after) .. '-18446744073709551615'
local to = (redis.call('HGET', run, 'last_sequence') or '0') .. '-0'
for _ = 1, tonumber(ARGV[3]) do
  -- One by one: each may have its payload in it.
  local entry = redis.call('XRANGE', log, from, to, 'COUNT', '1')[1]
  if not entry then
    break
  end
  local id, values = entry[1], {}
  for i = 1, #entry[2], 2 do
    values[entry[2][i]] = entry[2][i + 1]
  end
  local number, part = string.match(id, '^(%d+)-(%d+)$')
  last, from = tonumber(number), '(' .. id
  -- Another part is no append's entry; the learner takes it out.
  local is_theirs = values.producer == ARGV[1] and part == '0'
  if is_theirs and last <= read then
    left = left + 1
  elseif is_theirs then
    -- The leading zero says that the broker has not lost it, and every reader takes it for the same number.
    redis.call('HSET', holes, plain(last), '0' .. plain(last))
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
return {last, taken, left}
