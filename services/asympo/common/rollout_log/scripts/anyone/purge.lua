#!lua flags=allow-oom
-- Deletes what was set aside. KEYS: run, dead. Replies how many there were. Twice: none are left.
--!include letter
local run, dead = unpack(KEYS)
local count = redis.call('XLEN', dead)
redis.call('HSET', run, 'dead_letter_sequence', string.format('%.0f', newest_letter(run, dead)), 'dead_letter_bytes', 0)
redis.call('UNLINK', dead)
return {count}
