"""Imports of a library as if another package were not installed."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def hidden(package: str) -> Iterator[None]:
    """For what a library takes up where it finds it; importing the package fails meanwhile."""
    modules: dict[str, Any] = sys.modules
    held = {package: modules[package]} if package in modules else {}
    # How Python marks what cannot be imported.
    modules[package] = None
    try:
        yield
    finally:
        del modules[package]
        modules.update(held)
