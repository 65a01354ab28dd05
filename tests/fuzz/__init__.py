"""Every parser of bytes that somebody else wrote, tried with bytes that nobody would write."""
