#!lua
-- Appends groups that were made without a lease, each under the next dense number while leases + open < capacity.
-- KEYS: run, log, open, leases, deadlines, reissue, wake, submitted, producers.
-- ARGV: producer, slots it may hold while others hold some, ids remembered, then for each group: sortable id, group
-- id, payload; last the id of the run that the caller has joined (empty or left out where it knows none): to another one
-- of that name it comes before its start. Replies newest event, milliseconds until it may be worth asking again, then for each group outcome and
-- sequence. Twice: an id among the newest remembered ones replies DUPLICATE, one older than all of them TOO_OLD, so
-- nothing enters twice. XADD is the first write of each group: a broker that is full has written none of it.
--!include time
--!include wake
--!include lease
--!include beside
--!include expire
--!include wait
--!include enter
local run, log, open, leases, deadlines, reissue, wake, submitted, producers = unpack(KEYS)
local producer, share, window = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local last_part = #ARGV - #ARGV % 3
local joined = ARGV[last_part + 1] or ''
local prefix = producer .. '/'
local function is_its_own(id)
  return string.sub(id, 1, #prefix) == prefix and #id <= 160
end
-- Whatever a caller says: a name that begins like a leased prompt's id, or an id outside of the producer's own
-- names, is stored nowhere.
local is_named = #producer <= 32 and string.match(producer, '^[a-z][a-z0-9-]*$')
for i = 4, last_part, 3 do
  is_named = is_named and is_its_own(ARGV[i]) and is_its_own(ARGV[i + 1])
end
if not is_named then
  return redis.error_reply('ERR a producer, and ids that begin with its name and a slash, are needed')
end

local now = now_ms()
local fields = learner_fields(run, {'state', 'capacity', 'max_record_bytes', 'max_lease_ms', 'run_id'})
fields.last_sequence = redis.call('HGET', run, 'last_sequence')
expire_leases(now, run, leases, deadlines, reissue, wake)

local first, last = '[' .. prefix, '(' .. producer .. '0' -- '0' is the character after '/'
local num_leases, num_open = redis.call('HLEN', leases), redis.call('SCARD', open)
if num_leases + num_open >= (tonumber(fields.capacity) or 0)
  and expire_strays(now, tonumber(fields.max_lease_ms), num_leases, run, leases, deadlines, reissue, wake) then
  num_leases = redis.call('HLEN', leases)
end
local used = num_leases + num_open

-- Counted once a call: only slots of groups made under no lease, and leases that the producer holds.
local mine = nil
local function count_mine()
  mine = 0
  for _, group_id in ipairs(redis.call('SMEMBERS', open)) do
    if string.sub(group_id, 1, #prefix) == prefix then
      mine = mine + 1
    end
  end
  for _, stored in ipairs(redis.call('HVALS', leases)) do
    local _, _, _, holder = parse_lease(stored)
    if holder == producer then
      mine = mine + 1
    end
  end
end

local max_bytes = tonumber(fields.max_record_bytes or '16777216') or 16777216
local function refusal(id, payload)
  if joined ~= '' and (fields.run_id or joined) ~= joined then
    return 'NOT_STARTED'
  end
  if #payload > max_bytes then
    return 'TOO_LARGE'
  end
  if redis.call('ZSCORE', submitted, id) then
    return 'DUPLICATE'
  end
  if redis.call('ZLEXCOUNT', submitted, first, last) >= window
    and id < redis.call('ZRANGEBYLEX', submitted, first, last, 'LIMIT', 0, 1)[1] then
    return 'TOO_OLD'
  end
  if fields.state == 'finished' or fields.state == 'failed' then
    return 'RUN_ENDED'
  elseif fields.state == 'draining' then
    return 'PAUSED'
  elseif fields.state ~= 'running' then
    return 'NOT_STARTED'
  end
  if used >= tonumber(fields.capacity) then
    return 'NO_CAPACITY'
  end
  if share < tonumber(fields.capacity) then
    if not mine then
      count_mine()
    end
    if mine >= share and used > mine then
      return 'OVER_SHARE'
    end
  end
  return nil
end

local found = {newest_id(wake), until_next_expiry(now, deadlines)}
local counts = {}
for i = 4, last_part, 3 do
  local id, group_id = ARGV[i], ARGV[i + 1]
  local outcome = refusal(id, ARGV[i + 2])
  local sequence, problem = 0, nil
  if not outcome then
    sequence, problem = enter(log, fields.last_sequence, 'group_id', group_id, 'producer', producer,
      'at_ms', plain(now), 'payload', ARGV[i + 2])
    if problem then
      return problem
    end
    used, mine, fields.last_sequence = used + 1, mine and mine + 1, plain(sequence)
    redis.call('HSET', run, 'last_sequence', fields.last_sequence)
    redis.call('HINCRBY', run, 'appended', 1)
    redis.call('SADD', open, group_id)
    redis.call('ZADD', submitted, 0, id)
    outcome = 'APPENDED'
  end
  counts[outcome] = (counts[outcome] or 0) + 1
  found[#found + 1] = outcome
  found[#found + 1] = sequence
end
for _, outcome in ipairs({'APPENDED', 'DUPLICATE', 'TOO_OLD'}) do
  if counts[outcome] then
    redis.call('HINCRBY', producers, prefix .. string.lower(outcome), counts[outcome])
  end
end
local surplus = redis.call('ZLEXCOUNT', submitted, first, last) - window
if surplus > 0 then
  for _, id in ipairs(redis.call('ZRANGEBYLEX', submitted, first, last, 'LIMIT', 0, surplus)) do
    redis.call('ZREM', submitted, id)
  end
end
return found
