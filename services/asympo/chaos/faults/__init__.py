"""Each fault: how it is injected, and how its effect is observed."""
