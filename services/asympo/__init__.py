"""Asynchronous LLM post-training from (prompt, response, reward) alone."""

__version__ = "0.1.0"
