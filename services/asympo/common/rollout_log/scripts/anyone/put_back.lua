#!lua
-- Writes a piece of a copied key. KEYS: key, config. ARGV: type, place of the piece's first item, items as copy.lua
-- gives them (of a stream: one entry, its id and then field, value, ...). Replies OK; or EXISTS and writes nothing,
-- since a run that has a config is a whole one. Twice: the second call finds the items there.
local key, kind, place = KEYS[1], ARGV[1], tonumber(ARGV[2])
if redis.call('EXISTS', KEYS[2]) == 1 and key ~= KEYS[2] then
  return {'EXISTS'}
end
local items = {unpack(ARGV, 3)}
if kind == 'string' then
  if not redis.call('SET', key, items[1], 'NX') and redis.call('GET', key) ~= items[1] then
    return {'EXISTS'}
  end
elseif kind == 'hash' then
  redis.call('HSET', key, unpack(items))
elseif kind == 'set' then
  redis.call('SADD', key, unpack(items))
elseif kind == 'list' then
  if redis.call('LLEN', key) == place then
    redis.call('RPUSH', key, unpack(items))
  end
elseif kind == 'zset' then
  for i = 1, #items, 2 do
    redis.call('ZADD', key, items[i + 1], items[i])
  end
elseif kind == 'stream' then
  if #redis.call('XRANGE', key, items[1], items[1]) == 0 then
    redis.call('XADD', key, unpack(items))
  end
end
return {'OK'}
