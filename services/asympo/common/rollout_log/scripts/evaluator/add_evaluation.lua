#!lua flags=allow-oom
-- Keeps the result of an evaluation. KEYS: evaluations. ARGV: result JSON.
-- Twice: nothing, while no other was kept in between; a result holds the time of its end.
--!include results
return keep_result(KEYS[1], ARGV[1], '~', 4096, '*', 'result', ARGV[1])
