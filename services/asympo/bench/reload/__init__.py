"""`asympo bench reload`: what a swap costs an engine (`swaps`), and a policy its learner (`publishing`)."""
