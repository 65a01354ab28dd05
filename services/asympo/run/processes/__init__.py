"""The processes of a run: started and stopped in order, what they say, what they take."""
