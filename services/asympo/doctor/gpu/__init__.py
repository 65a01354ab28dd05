"""What only a GPU shows, in steps: each a process of its own with a time limit and one sentence."""
