"""`asympo doctor`: what is wrong with this deployment, and what to do about it. It changes nothing."""
