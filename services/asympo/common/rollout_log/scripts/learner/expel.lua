#!lua flags=allow-oom
-- Takes entries out of the log that no append wrote: their numbers are no "<sequence>-0", or were not given out. Their
-- content is set aside among the newest dead letters. KEYS: run, log, dead. ARGV: fence number, token, server id, how
-- many letters to keep, bytes to keep, reason, ids of the entries. Replies OK. Twice: they are gone.
--!include time
--!include fence
--!include letter
local run, log, dead = unpack(KEYS)
local problem = fence_problem(run)
if problem then
  return problem
end
local learner, is_top_beyond = learner_hash(run), false
local last = whole(redis.call('HGET', run, 'last_sequence') or '0')
if not last then
  return {'CHANGED'}
end
for i = 7, #ARGV do
  local number, part = string.match(ARGV[i], '^(%d+)-(%d+)$')
  local entry = redis.call('XRANGE', log, ARGV[i], ARGV[i])[1]
  if entry and (part ~= '0' or tonumber(number) > last) then
    local content = table.concat(entry[2], ' ')
    add_letter(learner, dead, plain(newest_letter(learner, dead)) .. '-*', {count = tonumber(ARGV[4]), bytes = tonumber(ARGV[5])}, {'group_id', '',
      'producer', '', 'reason', ARGV[6], 'payload', content, 'at_ms', plain(now_ms())})
    redis.call('XDEL', log, ARGV[i])
    is_top_beyond = is_top_beyond or tonumber(number) > last
  end
end
if is_top_beyond then
  -- The next append takes the next number again. Servers do not agree on how a stream's newest id is set back.
  local kept = redis.call('XRANGE', log, '-', plain(last) .. '-0')
  redis.call('DEL', log)
  for _, entry in ipairs(kept) do
    if #entry[2] <= 64 then
      redis.call('XADD', log, entry[1], unpack(entry[2]))
    end
  end
end
return {'OK'}
