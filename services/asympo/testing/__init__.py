"""Stand-ins for what a real run has, such as a tiny model: for tests, and for tools that try the product."""
