"""`asympo bench`: this machine's numbers. Measurements only: nothing in the product depends on them."""
