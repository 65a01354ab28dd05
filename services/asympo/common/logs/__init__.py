"""Which of the lines that a process logs are written, and how many of one kind."""
