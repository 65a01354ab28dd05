"""What is asked: prompts and their answers, as text and as the model sees them. Scoring is in `rewards`."""
