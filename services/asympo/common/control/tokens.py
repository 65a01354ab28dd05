"""The token that a door asks for, as a file holds it."""

from pathlib import Path

from asympo.common.errors import BadSetting


def read_token(path: Path | None) -> str:
    """The first word of the file; empty without one. Raises BadSetting."""
    if path is None:
        return ""
    try:
        return path.read_text().split()[0]
    except (OSError, UnicodeDecodeError, IndexError) as error:
        raise BadSetting(f"doors_token: no token can be read from {path} ({error!r})") from None
