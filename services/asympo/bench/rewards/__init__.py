"""What scoring costs beside the reward functions themselves, and whether it gives what they give."""
