#!lua flags=no-writes
-- Which groups are in the log, without their payloads. KEYS: log. ARGV: after this sequence, at most this many.
-- Replies sequence, group id, ...
local found = {}
for _, entry in ipairs(redis.call('XRANGE', KEYS[1], '(' .. ARGV[1] .. '-0', '+', 'COUNT', ARGV[2])) do
  for i = 1, #entry[2], 2 do
    if entry[2][i] == 'group_id' then
      found[#found + 1] = tonumber(string.match(entry[1], '^(%d+)'))
      found[#found + 1] = entry[2][i + 1]
    end
  end
end
return found
