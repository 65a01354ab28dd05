"""`asympo checkpoint`: looks at the policies of a run, compares them and takes them away. Trains nothing."""
