#!lua
-- Appends a record that was set aside once more, under an id and a payload of its own. KEYS: run, log, open, dead.
-- ARGV: id of the letter, group id, payload, producer. Replies OK, sequence; or MISSING. Twice: the letter is gone.
--!include time
--!include beside
--!include enter
local run, log, open, dead = unpack(KEYS)
local letter = redis.call('XRANGE', dead, ARGV[1], ARGV[1])[1]
if not letter then
  return {'MISSING'}
end
local sequence, problem = enter(log, redis.call('HGET', run, 'last_sequence'), 'group_id', ARGV[2],
  'producer', ARGV[4], 'at_ms', plain(now_ms()), 'payload', ARGV[3])
if problem then
  return problem
end
redis.call('HSET', run, 'last_sequence', plain(sequence))
redis.call('HINCRBY', run, 'appended', 1)
redis.call('SADD', open, ARGV[2])
redis.call('XDEL', dead, ARGV[1])
local size = 0
for i = 2, #letter[2], 2 do
  size = size + #letter[2][i]
end
redis.call('HINCRBY', learner_hash(run), 'dead_letter_bytes', -size)
return {'OK', sequence}
