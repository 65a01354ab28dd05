"""What evaluations found: results beside the log, which they never feed."""
