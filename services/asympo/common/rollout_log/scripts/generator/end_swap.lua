#!lua flags=allow-oom
-- A holder has loaded a policy or given it up. KEYS: swaps. ARGV: holder, "<fence>:<step>" if it proved one, else empty.
-- Twice: changes nothing more.
local swaps = KEYS[1]
if #ARGV[1] > 512 or #ARGV[2] > 32 or (ARGV[2] ~= '' and not string.match(ARGV[2], '^%d+:%d+$')) then
  return redis.error_reply('ERR a holder, and a fence and a step or nothing, are needed')
end
redis.call('HDEL', swaps, 'h:' .. ARGV[1])
if ARGV[2] ~= '' then
  redis.call('HSET', swaps, 'proved', ARGV[2])
end
return {'OK'}
