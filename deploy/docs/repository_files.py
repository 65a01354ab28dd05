"""Links from a page to files of the repository outside docs/ work on the site as well.

Each such file becomes part of the site below `repository/`: Markdown as a page, everything else as it is.
A link to a file that does not exist is left as it stands, so that the strict build stops at it.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
_LINK = re.compile(r"(\]\()([^)#:\s]+)((?:#[^)\s]*)?\))")


def on_files(files: Files, *, config: Any) -> Files:
    """Adds what the pages link to, and what those pages link to in turn."""
    pages = [file.src_uri for file in files.documentation_pages()]
    while pages:
        page = pages.pop()
        for match in _LINK.finditer(ROOT.joinpath(_in_repository(page)).read_text(encoding="utf-8")):
            target = _target(page, match[2])
            if target is None or (source := _on_site(target)) in files.src_uris:
                continue
            files.append(File.generated(config, source, abs_src_path=str(ROOT / target)))
            if source.endswith(".md"):
                pages.append(source)
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Links to those files lead to where they are on the site."""

    def moved(match: re.Match[str]) -> str:
        target = _target(page.file.src_uri, match[2])
        if target is None:
            return match[0]
        return match[1] + posixpath.relpath(_on_site(target), posixpath.dirname(page.file.src_uri)) + match[3]

    return _LINK.sub(moved, markdown)


def _in_repository(page: str) -> str:
    """Where the page of this place on the site lies."""
    return page.removeprefix("repository/") if page.startswith("repository/") else f"docs/{page}"


def _on_site(path: str) -> str:
    return path.removeprefix("docs/") if path.startswith("docs/") else f"repository/{path}"


def _target(page: str, link: str) -> str | None:
    """The file of the repository that a link means, or None where there is no such file."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(_in_repository(page)), link))
    return path if not path.startswith("..") and ROOT.joinpath(path).is_file() else None
