"""What others wrote, coming in and going out: bounded numbers and documents, and text fit for a terminal.

Nothing here knows what the values mean; the reader decides what is done with bad ones.
"""
