"""What is remembered of a step for people: rows, trackers, traces."""
