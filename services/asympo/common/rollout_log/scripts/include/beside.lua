-- The name of another key of the run. Not one of KEYS, which access rules take for written: what only the learner
-- writes is read by a name made here.
local function beside(run, noun)
  return (string.gsub(run, ':run$', ':' .. noun))
end

-- A stored number that everybody may write; nil for what is none. Lua would take "nan" and "-1" for numbers as well.
local function whole(stored)
  return #(stored or '') <= 15 and tonumber(string.match(stored or '', '^%d+$')) or nil
end

-- The hash of what only the learner writes: state, limits, owner, newest policy, how far it has trained. In a run of
-- script version 2 it is the hash that everybody writes.
local function learner_hash(run)
  local learner = beside(run, 'learner')
  return redis.call('EXISTS', learner) == 1 and learner or run
end

-- Fields of that hash by name, the first of which is always there; and whether it is one of its own.
local function learner_fields(run, names)
  local values, fields = redis.call('HMGET', beside(run, 'learner'), unpack(names)), {is_apart = true}
  if not values[1] then
    values, fields.is_apart = redis.call('HMGET', run, unpack(names)), false
  end
  for i, value in ipairs(values) do
    fields[names[i]] = value
  end
  return fields
end
