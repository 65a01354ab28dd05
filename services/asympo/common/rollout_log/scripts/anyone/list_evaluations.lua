#!lua flags=no-writes
-- Results of evaluations. KEYS: evaluations. ARGV: after this id, at most this many. Replies id, result, ...
--!include results
return list_results(KEYS[1], 'result', ARGV[1], ARGV[2])
