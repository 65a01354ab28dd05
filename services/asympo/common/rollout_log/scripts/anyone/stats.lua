#!lua flags=no-writes
-- Figures of one instant. KEYS: run, open, leases, deadlines, reissue, set_aside. Replies name, value, ...
--!include time
--!include beside
local run, open, leases, deadlines, reissue, set_aside = unpack(KEYS)
local fields, now = {}, now_ms()
for _, hash in ipairs({run, learner_hash(run)}) do
  local flat = redis.call('HGETALL', hash)
  for i = 1, #flat, 2 do
    fields[flat[i]] = flat[i + 1]
  end
end
local function field(name)
  return tonumber(fields[name] or '0') or 0
end
local num_epochs, queued = field('num_epochs'), redis.call('LLEN', reissue)
local is_last_issued = num_epochs > 0 and (field('epoch') >= num_epochs
  or (field('epoch') == num_epochs - 1 and field('position') >= field('num_prompts')))
local is_exhausted = is_last_issued and queued == 0 and redis.call('HLEN', leases) == 0
local found = {
  'state', fields.state or 'created',
  'state_reason', fields.state_reason or '',
  'fence_holder', fields.fence_holder or '',
  'open', redis.call('SCARD', open),
  'leases', redis.call('ZCOUNT', deadlines, '(' .. plain(now), '+inf'),
  'reissue', queued,
  'prompts_set_aside', redis.call('HLEN', set_aside),
  'backlog', math.max(0, field('last_sequence') - math.max(field('committed_sequence'), field('trained_sequence'))),
  'is_exhausted', is_exhausted and 1 or 0,
  'is_fence_alive', field('fence_deadline_ms') > now and 1 or 0,
  'server_time_ms', now,
}
for _, name in ipairs({'capacity', 'appended', 'trained', 'dead_letters', 'leases_granted', 'lease_expiries',
  'wasted_appends', 'stale_appends', 'duplicate_appends', 'prompt_failures', 'last_sequence', 'committed_sequence',
  'policies_published', 'generation_staleness_policies_total', 'generation_staleness_steps_total',
  'generation_staleness_max', 'epoch', 'position', 'fence'}) do
  found[#found + 1] = name
  found[#found + 1] = field(name)
end
return found
