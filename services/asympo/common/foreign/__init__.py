"""What others wrote, coming in and going out: bounded numbers and documents, and text fit for a terminal.

Nothing here knows what the values mean; whoever reads them says what is done with those that are no good.
"""
