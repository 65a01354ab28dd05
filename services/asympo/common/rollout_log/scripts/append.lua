#!lua
-- Appends one group under the next dense number and ends its lease.
-- KEYS: run, log, open, leases, deadlines, answers, reissue, wake, policy_steps, failures.
-- ARGV: token, payload, producer. Replies outcome, sequence, staleness in policies, staleness in optimizer steps.
-- Without allow-oom: a broker over its memory limit refuses it before it starts. XADD is the first write, so when
-- that is refused nothing else has happened. Twice with one token: the second call finds the token among the
-- answers and replies DUPLICATE.
--!include time
--!include wake
--!include lease
local run, log, open, leases, deadlines, answers, reissue, wake, policy_steps, failures = unpack(KEYS)
local token, payload, producer = ARGV[1], ARGV[2], ARGV[3]

local answered = redis.call('ZSCORE', answers, token)
if answered then
  redis.call('HINCRBY', run, 'duplicate_appends', 1)
  return {'DUPLICATE', tonumber(answered), 0, 0}
end

local stored = redis.call('HGET', leases, token)
if not stored then
  redis.call('HINCRBY', run, 'wasted_appends', 1)
  return {'LEASE_LOST', 0, 0, 0}
end

local now = now_ms()
local group_id, policy_step = parse_lease(stored)
local fields = redis.call('HMGET', run, 'state', 'last_sequence', 'capacity', 'max_generation_staleness', 'policy_step',
  'generation_staleness_max')
local state, max_generation = fields[1], tonumber(fields[4])
local staleness = redis.call('ZCOUNT', policy_steps, '(' .. plain(policy_step), '+inf')
local staleness_steps = math.max(0, tonumber(fields[5] or policy_step) - policy_step)

local function refuse(outcome, counter)
  return_prompt(token, group_id, leases, deadlines, reissue)
  redis.call('HINCRBY', run, 'wasted_appends', 1)
  if counter then
    redis.call('HINCRBY', run, counter, 1)
  end
  wake_all(wake, 'append_refused')
  return {outcome, 0, staleness, staleness_steps}
end

if tonumber(redis.call('ZSCORE', deadlines, token) or '0') <= now then
  return refuse('LEASE_LOST', 'lease_expiries')
elseif state == 'finished' or state == 'failed' then
  return refuse('REFUSED', nil)
elseif max_generation >= 0 and staleness > max_generation then
  return refuse('TOO_STALE', 'stale_appends')
end

local sequence = tonumber(fields[2]) + 1
redis.call('XADD', log, plain(sequence) .. '-0', 'group_id', group_id, 'producer', producer, 'at_ms', plain(now),
  'payload', payload)
redis.call('HSET', run, 'last_sequence', plain(sequence))
redis.call('SADD', open, group_id)
redis.call('HDEL', leases, token)
redis.call('ZREM', deadlines, token)
redis.call('ZADD', answers, sequence, token)
redis.call('ZREMRANGEBYSCORE', answers, '-inf', sequence - math.max(4096, 8 * tonumber(fields[3])))
redis.call('HDEL', failures, group_id)
redis.call('HINCRBY', run, 'appended', 1)
redis.call('HINCRBY', run, 'generation_staleness_policies_total', staleness)
redis.call('HINCRBY', run, 'generation_staleness_steps_total', staleness_steps)
if staleness > tonumber(fields[6] or '0') then
  redis.call('HSET', run, 'generation_staleness_max', staleness)
end
return {'APPENDED', sequence, staleness, staleness_steps}
