"""From an announced policy to a proved one: watching, loading, judging, and the gate for groups meanwhile."""
