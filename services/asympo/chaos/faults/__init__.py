"""Each fault: how it is put, and how it is seen to have had an effect."""
