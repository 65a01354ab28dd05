#!lua
-- Keeps what a policy answered to a prompt of an evaluation. KEYS: eval_samples. ARGV: sample JSON.
-- Twice: nothing, while no other was kept in between; a sample holds the time of its end.
--!include results
return keep_result(KEYS[1], ARGV[1], 512, '*', 'sample', ARGV[1])
