#!lua flags=no-writes
-- The content of keys as of one instant. KEYS: any. Replies for each: its type, and what is in it: one value, field,
-- value, ...; members; items; member, score, ...; or id, {field, value, ...}, ...
local readers = {
  string = function(key) return {redis.call('GET', key)} end,
  hash = function(key) return redis.call('HGETALL', key) end,
  set = function(key) return redis.call('SMEMBERS', key) end,
  list = function(key) return redis.call('LRANGE', key, 0, -1) end,
  zset = function(key) return redis.call('ZRANGE', key, 0, -1, 'WITHSCORES') end,
  stream = function(key)
    local flat = {}
    for _, entry in ipairs(redis.call('XRANGE', key, '-', '+')) do
      flat[#flat + 1], flat[#flat + 2] = entry[1], entry[2]
    end
    return flat
  end,
}
local found = {}
for i, key in ipairs(KEYS) do
  local kind = redis.call('TYPE', key).ok
  found[i] = {kind, kind == 'none' and {} or readers[kind](key)}
end
return found
