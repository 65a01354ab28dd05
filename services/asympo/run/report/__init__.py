"""What is told of a run at its end: summary, curves, promises. Nothing here starts or stops a service."""
