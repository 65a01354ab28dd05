#!lua flags=no-writes
-- Results of evaluations, oldest first. KEYS: evaluations. ARGV: after this id, at most this many. Replies id, result, ...;
-- one that is longer than the script that stores it allows is replied as empty.
local found, from = {}, '(' .. ARGV[1]
for _ = 1, tonumber(ARGV[2]) do
  local entry = redis.call('XRANGE', KEYS[1], from, '+', 'COUNT', 1)[1]
  if not entry then
    break
  end
  local result = ''
  for i = 1, #entry[2], 2 do
    if entry[2][i] == 'result' and #entry[2][i + 1] <= 16384 then
      result = entry[2][i + 1]
    end
  end
  found[#found + 1] = entry[1]
  found[#found + 1] = result
  from = '(' .. entry[1]
end
return found
