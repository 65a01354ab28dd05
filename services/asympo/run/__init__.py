"""`asympo run`: broker, generators and learner on one machine, from one file, stopped in order."""
