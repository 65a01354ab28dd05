"""`asympo demo`: a ready-made run for newcomers, with its model; the rest is `asympo run`."""
