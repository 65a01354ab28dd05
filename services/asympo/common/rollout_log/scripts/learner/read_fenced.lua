#!lua flags=no-writes
-- Entries of the log in order, for the run's owner on the broker it knows. KEYS: run, log. ARGV: fence number, token, server
-- id, then as for read.lua. Replies FENCED or CHANGED, or as that one. Reads only.
--!include fence
--!include entries
local run, log = unpack(KEYS)
return fence_problem(run) or entries_of(run, log, unpack(ARGV, 4))
