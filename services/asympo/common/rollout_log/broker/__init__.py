"""Connecting to a server, a cluster or a Sentinel group, and what the server says about itself."""
