"""Before anything starts: what the machine has, who gets which share of it, what the run will take."""
