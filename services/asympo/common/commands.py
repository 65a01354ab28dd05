"""What commands of the tools share: a parser whose errors are ours, JSON and tables on standard output."""

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from asympo.common.errors import BadSetting
from asympo.common.foreign.text import printable
from asympo.common.redaction import redact_text

MAX_LINE_CHARS = 4000


class CommandParser(argparse.ArgumentParser):
    """argparse without abbreviations; its errors are BadSetting."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        raise BadSetting(f"{self.prog}: {message}")


def at_least_one(text: str) -> int:
    """A whole number from 1 on, for a flag."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"needs a number of at least 1, not {text}")
    return int(text)


def at_least(least: float, kind: type[int] | type[float]) -> Callable[[str], float]:
    """A finite number from `least` on, for a flag."""

    def number(text: str) -> float:
        try:
            found = kind(text)
        except ValueError:
            found = math.nan
        if not least <= found < math.inf:
            what = "whole number" if kind is int else "number"
            raise argparse.ArgumentTypeError(f"needs a {what} of at least {least:g}, not {text}")
        return found

    return number


def add_json_flag(parser: argparse.ArgumentParser) -> None:
    """For commands that answer once."""
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def write_json(value: Any) -> None:
    """One line on standard output."""
    sys.stdout.write(json.dumps(value, default=str) + "\n")
    sys.stdout.flush()


def write_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table on standard output; as wide as its content if that is not a terminal.

    Cells may quote what others wrote: neither markup nor control characters mean anything.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    heading = Text("\n".join(map(printable, title.split("\n"))))
    table = Table(*columns, title=heading, title_justify="left", show_header=any(columns))
    for row in rows:
        table.add_row(*("" if cell is None else Text(printable(cell)) for cell in row))
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def say(line: str) -> None:
    """A line on standard error, where nothing takes it for the answer."""
    sys.stderr.write(redact_text(printable(line, max_chars=MAX_LINE_CHARS)) + "\n")


def show(line: str) -> None:
    """A line on standard output that may quote what others wrote."""
    sys.stdout.write(printable(line, max_chars=MAX_LINE_CHARS) + "\n")
    sys.stdout.flush()
