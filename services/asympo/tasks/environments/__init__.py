"""Environments that play whole episodes, each in a process and an interpreter of its own."""
