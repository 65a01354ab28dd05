"""From a lease to the log: groups in flight, sampling, scoring, appending, the journal of appends."""
