"""Somebody's data set as it lies: where its rows are read from, and how a row becomes a prompt."""
