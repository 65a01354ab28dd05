"""Held-out accuracy of the first and the last policy: its prompts, its measurement, its place in the run."""
