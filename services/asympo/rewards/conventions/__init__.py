"""How reward functions of other trainers are called, and what their results mean."""
