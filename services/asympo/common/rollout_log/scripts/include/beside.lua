-- The name of another key of the run. Not one of KEYS, which access rules take for written: what only the learner
-- writes is read by a name made here.
local function beside(run, noun)
  return (string.gsub(run, ':run$', ':' .. noun))
end
