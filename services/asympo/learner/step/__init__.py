"""From groups to one optimizer step: objectives, optimizer, precision, shares of ranks."""
