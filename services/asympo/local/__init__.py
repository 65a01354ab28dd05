"""Programs on this machine that tools and tests start: processes, services, brokers, and their ports."""
