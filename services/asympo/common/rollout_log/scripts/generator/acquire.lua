#!lua
-- Grants a lease while valid leases + open groups < capacity.
-- KEYS: run, open, leases, deadlines, reissue, wake. ARGV: new token, policy step of the holder, holder, id of the run
-- that it has joined (empty or left out where it knows none): to another one of that name it comes before its start.
-- Replies GRANTED, group id, milliseconds left, steps that the run makes or 0, 1 if its payload may lie beside the log;
-- or REFUSED, reason, milliseconds until it may be worth asking again, newest event, newest announcement (where that is
-- what to wait for). Twice with one token: the second call returns the lease that the first granted.
--!include time
--!include wake
--!include lease
--!include beside
--!include expire
--!include wait
local run, open, leases, deadlines, reissue, wake = unpack(KEYS)
local token, policy_step, holder, joined = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4] or ''
local now = now_ms()
if #token > 64 or not policy_step or #holder > 512 or string.find(holder, '%c') then
  return redis.error_reply('ERR a token, a policy step and the name of a holder are needed')
end

local function refuse(reason, retry_ms)
  local policy_id = '0-0'
  if reason == 'stale_policy' or reason == 'not_started' then
    policy_id = newest_id(beside(run, 'policies'))
  end
  return {'REFUSED', reason, retry_ms, newest_id(wake), policy_id}
end

-- The same permutation as order/permutation.py. Every product stays below 2^53, so that doubles hold it exactly.
local bxor = bit.bxor
local function permuted_index(seed, epoch, position, num_prompts)
  local half, square = 2, 4
  while square < num_prompts do
    half, square = half * 2, square * 4
  end
  local digest, round_keys = redis.sha1hex(seed .. ':' .. epoch), {}
  for round = 1, 6 do
    round_keys[round] = tonumber(string.sub(digest, 6 * round - 5, 6 * round), 16)
  end
  local value = position
  repeat
    local right = value % half
    local left = (value - right) / half
    for round = 1, 6 do
      local mixed = (right + round_keys[round]) * 73244475 % 4294967296
      mixed = bxor(mixed, (mixed - mixed % 32768) / 32768) % 67108864 * 73244475 % 4294967296
      left, right = right, bxor(left, bxor(mixed, (mixed - mixed % 8192) / 8192) % half)
    end
    value = left * half + right
  until value < num_prompts
  return value
end

-- The first position from one on, in an epoch, whose prompt does not rest: a bit in one of the pieces of rest.lua.
local function awake(limits, epoch, position)
  local num_prompts = tonumber(limits.num_prompts)
  while limits.order == 'by-success' and position < num_prompts do
    local index = permuted_index(limits.seed, plain(epoch), position, num_prompts)
    local piece = redis.call('HGET', beside(run, 'resting'), plain(epoch) .. '/' .. plain(math.floor(index / 8192)))
    local byte = string.byte(piece or '', math.floor(index % 8192 / 8) + 1) or 0
    if math.floor(byte / 2 ^ (index % 8)) % 2 == 0 then
      return position
    end
    position = position + 1
  end
  return position
end

-- The next prompt and the prompt cursor after it; nil when every epoch is used up.
local function next_group_id(limits)
  local queued = redis.call('LPOP', reissue)
  while queued and not is_own_id(queued) do
    queued = redis.call('LPOP', reissue)
  end
  if queued then
    -- Issued before: the prompt cursor stays where it is.
    return queued, limits.epoch, limits.position
  end
  local epoch, position = whole(limits.epoch), whole(limits.position)
  if not epoch or not position then
    -- Somebody wrote over the cursor; the next reconcile finds it again.
    return nil
  end
  local num_prompts, num_epochs = tonumber(limits.num_prompts), tonumber(limits.num_epochs)
  position = awake(limits, epoch, position)
  while position >= num_prompts do
    epoch, position = epoch + 1, awake(limits, epoch + 1, 0)
  end
  if num_epochs > 0 and epoch >= num_epochs then
    return nil
  end
  local index = permuted_index(limits.seed, plain(epoch), position, num_prompts)
  -- The last of an epoch leaves the cursor at its end, which is how a run's end is known.
  return plain(epoch) .. '-' .. plain(index), plain(epoch), plain(awake(limits, epoch, position + 1))
end

-- A retry whose first reply was lost must not take a second prompt.
local granted = redis.call('HGET', leases, token)
if granted and is_own_id((parse_lease(granted))) then
  local left = tonumber(redis.call('ZSCORE', deadlines, token) or '0') - now
  local total = learner_fields(run, {'state', 'total_steps'}).total_steps
  return {'GRANTED', (parse_lease(granted)), math.max(0, left), total or '0', learner_hash(run) == run and 0 or 1}
end

local limits = learner_fields(run, {'state', 'capacity', 'lease_ms', 'max_staleness', 'max_generation_staleness',
  'seed', 'num_prompts', 'num_epochs', 'policy_step', 'order', 'total_steps', 'run_id'})
if joined ~= '' and (limits.run_id or joined) ~= joined then
  return refuse('not_started', 30000)
end
if limits.state == 'finished' or limits.state == 'failed' then
  return refuse('run_ended', 30000)
elseif limits.state == 'draining' then
  return refuse('paused', 30000)
elseif limits.state ~= 'running' or not limits.policy_step then
  return refuse('not_started', 30000)
end

expire_leases(now, run, leases, deadlines, reissue, wake)

local max_staleness, max_generation = tonumber(limits.max_staleness), tonumber(limits.max_generation_staleness)
-- Synchronous: what an older policy samples would be stale when it is trained.
if max_staleness == 0 and policy_step ~= tonumber(limits.policy_step) then
  return refuse('stale_policy', 30000)
end
-- Append would refuse the finished group, so it is not sampled at all.
if max_generation >= 0 and policy_step < tonumber(limits.policy_step)
  and redis.call('ZCOUNT', beside(run, 'policy_steps'), '(' .. plain(policy_step), '+inf') > max_generation then
  return refuse('stale_policy', 30000)
end

local num_leases, num_open = redis.call('HLEN', leases), redis.call('SCARD', open)
local function end_strays()
  local longest = learner_fields(run, {'state', 'max_lease_ms'}).max_lease_ms
  return expire_strays(now, tonumber(longest), num_leases, run, leases, deadlines, reissue, wake)
end
if num_leases + num_open >= tonumber(limits.capacity)
  and not (end_strays() and redis.call('HLEN', leases) + num_open < tonumber(limits.capacity)) then
  return refuse('no_capacity', until_next_expiry(now, deadlines))
end
local cursor = redis.call('HMGET', run, 'epoch', 'position', 'leases_granted')
limits.epoch, limits.position = cursor[1] or '', cursor[2] or ''
local group_id, epoch, position = next_group_id(limits)
if not group_id and end_strays() then
  group_id, epoch, position = next_group_id(limits)
end
if not group_id then
  return refuse('no_prompts', until_next_expiry(now, deadlines))
end

local lease_ms = tonumber(limits.lease_ms)
redis.call('HSET', leases, token, group_id .. '|' .. plain(policy_step) .. '|' .. plain(now) .. '|' .. holder)
redis.call('ZADD', deadlines, plain(now + lease_ms), token)
redis.call('HSET', run, 'epoch', epoch, 'position', position, 'leases_granted',
  plain((tonumber(cursor[3] or '0') or 0) + 1))
return {'GRANTED', group_id, lease_ms, limits.total_steps or '0', limits.is_apart and 1 or 0}
