"""Policies on their way to the checkpoint root."""
