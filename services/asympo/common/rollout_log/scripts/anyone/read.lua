#!lua flags=no-writes
-- Entries of the log in order. KEYS: run, log. ARGV: after this sequence, at most this many, with at most so many bytes
-- together, none with more than so many. Replies as entries.lua says.
--!include beside
--!include entries
return entries_of(KEYS[1], KEYS[2], unpack(ARGV))
