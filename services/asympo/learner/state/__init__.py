"""The durable training state and the archive: what a restart finds."""
