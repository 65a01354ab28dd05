"""What producers without a lease do with the log: they submit groups under ids of their own."""
