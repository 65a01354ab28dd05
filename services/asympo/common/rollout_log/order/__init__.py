"""The order in which an epoch asks its prompts, and which of them rest in it."""
