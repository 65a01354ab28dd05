#!lua flags=no-writes
-- Reports of bad policies. KEYS: bad_policies. Replies "<fence>:<step>", when and report, ...; one that is longer than
-- the script that stores it allows is replied as empty.
local found = {}
for i, name in ipairs(redis.call('HKEYS', KEYS[1])) do
  if i > 4096 then
    break
  end
  found[#found + 1] = string.sub(name, 1, 64)
  found[#found + 1] = redis.call('HSTRLEN', KEYS[1], name) > 16384 and '' or redis.call('HGET', KEYS[1], name)
end
return found
