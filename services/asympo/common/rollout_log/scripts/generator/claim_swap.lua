#!lua flags=allow-oom
-- May a holder load a policy now? KEYS: swaps, presence_until, bad_policies. ARGV: holder, "<fence>:<step>",
-- milliseconds, percent. Replies FIRST to one alone while nobody has proved the policy, then OK to that share of all
-- present, WAIT to the rest, BAD for a bad policy.
-- Twice: the claim lasts longer. One further off than any can be was written by hand and does not count.
--!include time
local swaps, presence_until, bad_policies = unpack(KEYS)
local milliseconds, percent = tonumber(ARGV[3]), tonumber(ARGV[4])
if #ARGV[1] > 512 or not string.match(ARGV[2], '^%d+:%d+$') or #ARGV[2] > 32 or not milliseconds or milliseconds < 1
  or milliseconds > 60000 or not percent or percent < 1 or percent > 100 then
  return redis.error_reply('ERR a holder, a fence and a step, at most a minute and a share are needed')
end
local now, mine, others = now_ms(), 'h:' .. ARGV[1], 0
local flat = redis.call('HGETALL', swaps)
for i = 1, #flat, 2 do
  local ends = tonumber(flat[i + 1])
  if flat[i] ~= 'proved' and flat[i] ~= mine then
    if ends and ends > now and ends <= now + 60000 then
      others = others + 1
    else
      redis.call('HDEL', swaps, flat[i])
    end
  end
end
local is_first = redis.call('HGET', swaps, 'proved') ~= ARGV[2]
local present = redis.call('ZCOUNT', presence_until, plain(now), '+inf')
local room = is_first and 1 or math.max(1, math.ceil(present * percent / 100))
if redis.call('HEXISTS', bad_policies, ARGV[2]) == 1 then
  return {'BAD'}
elseif others >= room then
  return {'WAIT'}
end
redis.call('HSET', swaps, mine, plain(now + milliseconds))
return {is_first and 'FIRST' or 'OK'}
