"""What becomes of the lines that a process logs: how many of one kind, and which of them are shown."""
