#!lua flags=no-writes
-- Which groups are in the log, without their payloads. KEYS: run, log. ARGV: after this sequence, at most this many.
-- Replies sequence, group id, ...; the id is empty where an entry is none that an append wrote.
local found = {}
local from, to = '(' .. ARGV[1] .. '-18446744073709551615', (redis.call('HGET', KEYS[1], 'last_sequence') or '0') .. '-0'
for _, entry in ipairs(redis.call('XRANGE', KEYS[2], from, to, 'COUNT', ARGV[2])) do
  local number, part = string.match(entry[1], '^(%d+)-(%d+)$')
  local group_id = ''
  for i = 1, #entry[2], 2 do
    if entry[2][i] == 'group_id' and part == '0' then
      group_id = entry[2][i + 1]
    end
  end
  found[#found + 1] = tonumber(number)
  found[#found + 1] = group_id
end
return found
