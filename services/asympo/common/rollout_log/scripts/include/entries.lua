-- Entries of the log in order: after a sequence, at most so many, with at most so many bytes together (one at least), none
-- with more than so many. The newest number given out, then for each entry its id, its bytes and {field, value, ...}; of
-- one that is too large only the short values. A payload that lies beside the log counts, and is fetched by the caller:
-- Lua would hash every byte of it. Needs `beside`.
local function entries_of(run, log, after, max_count, max_total, max_entry)
  local payloads = beside(run, 'payloads')
  local last, found, total = redis.call('HGET', run, 'last_sequence') or '0', {}, 0
  found[1] = last
  local from, max_total, max_entry = '(' .. after .. '-18446744073709551615', tonumber(max_total), tonumber(max_entry)
  for _ = 1, tonumber(max_count) do
    local entry = redis.call('XRANGE', log, from, '+', 'COUNT', '1')[1]
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
end
