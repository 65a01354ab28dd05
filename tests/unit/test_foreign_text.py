"""What others wrote is shown, and no terminal obeys it."""

import pytest
from asympo.cli import main
from asympo.common.commands import show, write_table
from asympo.common.foreign.documents import parse_object
from asympo.common.foreign.numbers import parse_whole
from asympo.common.foreign.text import printable
from hypothesis import given
from hypothesis import strategies as st

HOSTILE = "\x1b[31mred\x1b[0m\n12:00 ERROR forged\r\u202e[/x][bold]\u2028\x9b\udcff"


@given(st.text())
def test_printable_is_one_line_that_utf8_can_carry(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    shown.encode()


def test_ordinary_text_is_shown_as_it_is() -> None:
    assert printable("größe 😀 [a] 中文") == "größe 😀 [a] 中文"


def test_tables_and_lines_neither_obey_nor_break(capsys: pytest.CaptureFixture[str]) -> None:
    write_table("group 1 [/x]\nprompt", ("a",), [[HOSTILE], ["[/x]"], [None]])
    show(HOSTILE)
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert "[/x]" in shown
    assert not any(line.startswith("12:00") for line in shown.splitlines())


def test_error_of_a_command_does_not_reach_the_terminal_raw(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([HOSTILE]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert "\x1b" not in capsys.readouterr().err


@given(st.binary(max_size=200))
def test_parsers_of_foreign_bytes_raise_value_error_or_nothing(data: bytes) -> None:
    number = parse_whole(data)
    assert number is None or 0 <= number <= 10**15
    try:
        assert isinstance(parse_object(data, max_bytes=100), dict)
    except ValueError:
        return
