"""What producers without a lease do with the log: submit groups of their own ids, and what is done about theirs."""
