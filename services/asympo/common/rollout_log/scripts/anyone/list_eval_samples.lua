#!lua flags=no-writes
-- What policies answered in evaluations. KEYS: eval_samples. ARGV: after this id, at most this many. Replies id, sample, ...
--!include results
return list_results(KEYS[1], 'sample', ARGV[1], ARGV[2])
