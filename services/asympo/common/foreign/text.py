"""Text that somebody else wrote, fit for a terminal, a log line or a table."""

MAX_SHOWN_CHARS = 300


def printable(value: object, *, max_chars: int = MAX_SHOWN_CHARS) -> str:
    """One line that no terminal obeys: control, direction and invisible characters are spelt out."""
    text = str(value)
    shown = text if len(text) <= max_chars else text[: max_chars - 1] + "…"
    if shown.isprintable():
        return shown
    return "".join(char if char.isprintable() else _spelt(char) for char in shown)


def reason_of(error: BaseException) -> str:
    """The first line of what a library's error says, or its type where it says nothing."""
    return printable(next(iter(str(error).strip().splitlines()), type(error).__name__))


def _spelt(char: str) -> str:
    return char.encode("unicode_escape", errors="surrogatepass").decode("ascii")
