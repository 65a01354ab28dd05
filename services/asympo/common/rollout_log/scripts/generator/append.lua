#!lua
-- Appends one group under the next dense number and ends its lease.
-- KEYS: run, log, open, leases, deadlines, answers, reissue, wake, failures.
-- ARGV: token, payload, producer. No payload: it lies among the payloads beside the log, under the token; Lua would
-- hash every byte that passes through it. Replies outcome, sequence, staleness in policies, staleness in optimizer steps;
-- or TOO_LARGE, bytes that a record of this run may have. While no slot is free, more behind these four: milliseconds
-- until it may be worth asking for the next prompt, newest event. So nobody has to ask to be told the same.
-- Without allow-oom: a broker over its memory limit refuses it before it starts. XADD is the first write, so when
-- that is refused nothing else has happened. Twice with one token: the second call finds the token among the
-- answers and replies DUPLICATE.
--!include time
--!include wake
--!include lease
--!include beside
--!include enter
--!include wait
local run, log, open, leases, deadlines, answers, reissue, wake, failures = unpack(KEYS)
local token, payload, producer = ARGV[1], ARGV[2], ARGV[3]

if #producer > 512 or string.find(producer, '%c') then
  return redis.error_reply('ERR the name of a producer is needed')
end
local limits = learner_fields(run, {'state', 'capacity', 'max_generation_staleness', 'policy_step',
  'max_record_bytes'})
local max_bytes = tonumber(limits.max_record_bytes or '16777216') or 16777216
local size = #payload > 0 and #payload or redis.call('HSTRLEN', beside(run, 'payloads'), token)
if size > max_bytes then
  return {'TOO_LARGE', max_bytes, 0, 0}
end

local answered = redis.call('ZSCORE', answers, token)
if answered then
  redis.call('HINCRBY', run, 'duplicate_appends', 1)
  return {'DUPLICATE', tonumber(answered), 0, 0}
end

local group_id, policy_step = parse_lease(redis.call('HGET', leases, token) or '')
if not is_own_id(group_id) then
  redis.call('HINCRBY', run, 'wasted_appends', 1)
  return {'LEASE_LOST', 0, 0, 0}
end

local now = now_ms()
local counts = redis.call('HMGET', run, 'last_sequence', 'appended', 'prompt_failures')
local state, max_generation = limits.state, tonumber(limits.max_generation_staleness)
local staleness_steps = math.max(0, tonumber(limits.policy_step or policy_step) - policy_step)
local staleness = 0
if staleness_steps > 0 then
  staleness = redis.call('ZCOUNT', beside(run, 'policy_steps'), '(' .. plain(policy_step), '+inf')
end

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
elseif not limits.capacity then
  -- The broker has lost the run's limits: its learner writes them again, and asks for what is in no log.
  return refuse('LEASE_LOST', nil)
elseif state == 'finished' or state == 'failed' then
  return refuse('REFUSED', nil)
elseif max_generation >= 0 and staleness > max_generation then
  return refuse('TOO_STALE', 'stale_appends')
end

if size == 0 then
  return redis.error_reply('STRAY the payload is not there')
end
local sequence, problem = enter(log, counts[1], 'group_id', group_id, 'producer', producer,
  'at_ms', plain(now), unpack(#payload > 0 and {'payload', payload} or {'payload_at', token}))
if problem then
  return problem
end
redis.call('HSET', run, 'last_sequence', plain(sequence), 'appended', plain(tonumber(counts[2] or '0') + 1))
redis.call('SADD', open, group_id)
redis.call('HDEL', leases, token)
redis.call('ZREM', deadlines, token)
redis.call('ZADD', answers, plain(sequence), token)
if sequence % 64 == 0 then
  redis.call('ZREMRANGEBYSCORE', answers, '-inf', sequence - math.max(4096, 8 * tonumber(limits.capacity)))
end
if counts[3] then
  redis.call('HDEL', failures, group_id)
end
if staleness > 0 then
  local names = {'generation_staleness_policies_total', 'generation_staleness_steps_total', 'generation_staleness_max'}
  local sums = redis.call('HMGET', run, unpack(names))
  redis.call('HSET', run, names[1], plain(tonumber(sums[1] or '0') + staleness),
    names[2], plain(tonumber(sums[2] or '0') + staleness_steps),
    names[3], plain(math.max(staleness, tonumber(sums[3] or '0'))))
end
if redis.call('HLEN', leases) + redis.call('SCARD', open) >= tonumber(limits.capacity) then
  return {'APPENDED', sequence, staleness, staleness_steps, until_next_expiry(now, deadlines), newest_id(wake)}
end
return {'APPENDED', sequence, staleness, staleness_steps}
