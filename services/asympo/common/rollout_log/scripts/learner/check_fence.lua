#!lua flags=no-writes
-- Is the caller still the owner, on the broker it knows? KEYS: run. ARGV: fence number, token, server id. Reads only.
--!include fence
return fence_problem(KEYS[1]) or {'OK'}
