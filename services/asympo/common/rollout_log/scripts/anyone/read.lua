#!lua flags=no-writes
-- Entries of the log in order. KEYS: run, log. A payload that lies beside the log counts, and is fetched by the caller:
-- Lua would hash every byte of it. ARGV: after this sequence, at most this many, with at most so many bytes
-- together (one at least), none with more than so many. Replies the newest number given out, then for each entry its
-- id, its bytes and {field, value, ...}; of one that is too large only the short values.
--!include beside
local payloads = beside(KEYS[1], 'payloads')
local last, found, total = redis.call('HGET', KEYS[1], 'last_sequence') or '0', {}, 0
found[1] = last
local from, max_total, max_entry = '(' .. ARGV[1] .. '-18446744073709551615', tonumber(ARGV[3]), tonumber(ARGV[4])
for _ = 1, tonumber(ARGV[2]) do
  local entry = redis.call('XRANGE', KEYS[2], from, '+', 'COUNT', '1')[1]
  if not entry then
    break
  end
  local size, fields = 0, entry[2]
  for i, part in ipairs(fields) do
    size = size + #part
    if part == 'payload_at' and i % 2 == 1 and fields[i + 1] then
      size = size + redis.call('HSTRLEN', payloads, fields[i + 1])
    end
  end
  if size > max_entry then
    fields = {}
    for i = 1, math.min(#entry[2], 32), 2 do
      if #entry[2][i] + #entry[2][i + 1] <= 1024 then
        fields[#fields + 1] = entry[2][i]
        fields[#fields + 1] = entry[2][i + 1]
      end
    end
  end
  total = total + math.min(size, max_entry)
  if total > max_total and #found > 1 then
    break
  end
  found[#found + 1] = entry[1]
  found[#found + 1] = size
  found[#found + 1] = fields
  from = '(' .. entry[1]
end
return found
