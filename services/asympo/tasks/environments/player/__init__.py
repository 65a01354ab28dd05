"""Plays an environment in an interpreter that has it and nothing of ours: no module here imports `asympo`."""
