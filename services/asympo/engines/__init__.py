"""What samples: one protocol (`base`), and what fulfils it. Nothing here knows of leases or the log."""
