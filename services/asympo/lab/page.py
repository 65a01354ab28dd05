"""A report as blocks, written as Markdown and as one HTML file."""

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Heading:
    text: str
    level: int = 2


@dataclass(frozen=True, kw_only=True)
class Paragraph:
    text: str


@dataclass(frozen=True, kw_only=True)
class Code:
    text: str


@dataclass(frozen=True, kw_only=True)
class Table:
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Picture:
    path: Path
    text: str


Block = Heading | Paragraph | Code | Table | Picture

_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:70em;margin:2em auto;padding:0 1em}
table{border-collapse:collapse;margin:1em 0}
td,th{padding:.25em .7em;border-bottom:1px solid #ccc;text-align:left}
pre{background:#f4f4f4;padding:.7em;overflow-x:auto}img{max-width:100%}"""


def to_markdown(blocks: Sequence[Block], *, beside: Path) -> str:
    """Pictures are named relative to the folder `beside`."""
    parts = []
    for block in blocks:
        match block:
            case Heading():
                parts.append(f"{'#' * block.level} {block.text}")
            case Paragraph():
                parts.append(block.text)
            case Code():
                parts.append(f"```\n{block.text}\n```")
            case Table():
                parts.append(table_markdown(block))
            case Picture():
                parts.append(f"![{block.text}]({block.path.relative_to(beside)})")
    return "\n\n".join(parts) + "\n"


def table_markdown(table: Table) -> str:
    rows = [table.header, ["---"] * len(table.header), *table.rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def to_html(blocks: Sequence[Block], *, title: str) -> str:
    """One file: pictures are inside it."""
    parts = []
    for block in blocks:
        match block:
            case Heading():
                parts.append(f"<h{block.level}>{_inline(block.text)}</h{block.level}>")
            case Paragraph():
                parts.append(f"<p>{_inline(block.text)}</p>")
            case Code():
                parts.append(f"<pre>{html.escape(block.text)}</pre>")
            case Table():
                head = "".join(f"<th>{_inline(cell)}</th>" for cell in block.header)
                body = "".join(
                    f"<tr>{''.join(f'<td>{_inline(cell)}</td>' for cell in row)}</tr>" for row in block.rows
                )
                parts.append(f"<table><tr>{head}</tr>{body}</table>")
            case Picture():
                data = base64.b64encode(block.path.read_bytes()).decode()
                parts.append(f'<img alt="{html.escape(block.text)}" src="data:image/png;base64,{data}">')
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style>{''.join(parts)}</html>\n"
    )


def _inline(text: str) -> str:
    """Escaped, with **bold** and `code`."""
    for mark, tag in (("**", "b"), ("`", "code")):
        pieces = (html.escape(text) if mark == "**" else text).split(mark)
        if len(pieces) % 2 == 0:
            return text if mark == "`" else html.escape(text)
        text = "".join(
            f"<{tag}>{piece}</{tag}>" if index % 2 else piece for index, piece in enumerate(pieces)
        )
    return text
