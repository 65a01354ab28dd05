#!lua flags=allow-oom
-- Deletes what was set aside. KEYS: run, dead. Replies how many there were. Twice: none are left.
--!include letter
--!include beside
local run, dead = unpack(KEYS)
local learner = learner_hash(run)
local count = redis.call('XLEN', dead)
redis.call('HSET', learner, 'dead_letter_sequence', string.format('%.0f', newest_letter(learner, dead)),
  'dead_letter_bytes', 0)
redis.call('UNLINK', dead)
return {count}
