"""report.html: what a person wants to know of a run next morning, in one file that needs nothing else."""

import base64
import html
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from asympo.local.whole_file import write_whole
from asympo.run.directory import RunDirectory
from asympo.run.events import read_events
from asympo.run.report.evals import RESULTS, read_results, summary_rows
from asympo.run.report.samples import read_samples

_MAX_EVENTS = 400
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1d2433}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}table{border-collapse:collapse}
td,th{padding:.2rem .8rem .2rem 0;text-align:left;vertical-align:top}pre{white-space:pre-wrap;
background:#f4f5f7;padding:.6rem;border-radius:.4rem;margin:.3rem 0}.failed,.error{color:#b00020}
.finished{color:#17703a}
.muted{color:#667}img{max-width:100%}
"""


def how_it_ended(directory: Path, *, is_over: bool = False) -> tuple[str, str]:
    """State in one word, and the sentence that was written at the end; `is_over` where that is known."""
    held = RunDirectory(directory)
    mark, events = held.read_mark(), read_events(directory)
    last = str(events[-1]["text"]) if events else "nothing was noted"
    if not is_over and held.is_held:
        return "going on", last
    begun = max((at for at, event in enumerate(events) if event.get("kind") == "begin"), default=-1)
    ends = [str(event["text"]) for event in events[begun + 1 :] if event.get("kind") == "end"]
    if not ends:
        return "stopped", f"it ended without a word, as when a machine is switched off, after: {last}"
    last = ends[-1]
    state = "failed" if mark.get("failure") else "finished" if mark.get("is_finished") else "stopped"
    return state, last


def command_to_go_on(directory: Path) -> str:
    """What a person types to go on, and where; empty for a run that is finished."""
    mark = RunDirectory(directory).read_mark()
    if mark.get("is_finished"):
        return ""
    words = [word for word in mark.get("command", []) if word != "--fresh"]
    if words[1:2] == ["demo"] and "--resume" not in words:
        words.append("--resume")
    if not words:
        return ""
    url = mark.get("redis_url") or ""
    command = shlex.join(words)
    if "***" in url:
        # Given with stars for its password, it would only hide the right one.
        command += f"  # REDIS_URL as before: {url}"
    elif url:
        command = f"REDIS_URL={shlex.quote(url)} {command}"
    return f"cd {shlex.quote(mark.get('started_in', '.'))} && {command}"


def write_page(directory: Path, summary: Mapping[str, Any]) -> None:
    state, last = how_it_ended(directory, is_over=True)
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        f"<title>{_text(directory.name)}: {state}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{_text(directory.name)}: <span class='{state}'>{state}</span></h1><p>{_text(last)}</p>",
    ]
    command = command_to_go_on(directory)
    if command:
        parts.append(f"<h2>To go on</h2><pre>{_text(command)}</pre>")
    parts += ["<h2>Numbers</h2>", *_table(_numbers(summary))]
    evals = summary_rows(read_results(directory / RESULTS))
    if evals:
        parts += ["<h2>Evaluations</h2>", *_table(evals)]
    curves = directory / "curves.png"
    if curves.exists():
        data = base64.b64encode(curves.read_bytes()).decode()
        parts.append(f"<h2>Curves</h2><img alt='Curves of the run' src='data:image/png;base64,{data}'>")
    warnings, broken = summary.get("warnings") or [], summary.get("broken_promises") or []
    parts += ["<h2>What went wrong</h2>", *_list([*broken, *warnings], empty="Nothing was warned about.")]
    parts += ["<h2>What happened when</h2>", *_table(_events(directory))]
    parts += _samples(directory)
    parts.append("</body></html>\n")
    write_whole(directory / "report.html", "\n".join(parts))


def _numbers(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in summary.items():
        if key not in ("warnings", "broken_promises", "failure", "run") and value not in (None, []):
            yield key.replace("_", " "), ", ".join(map(_shown, value if isinstance(value, list) else [value]))


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _events(directory: Path) -> list[tuple[str, str]]:
    return [(clock_of(event), str(event.get("text"))) for event in read_events(directory)[-_MAX_EVENTS:]]


def clock_of(event: Mapping[str, Any]) -> str:
    """When an event was, for a person."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.get("at_seconds", 0)))


def _samples(directory: Path) -> Iterator[str]:
    kept = read_samples(directory)
    if not kept:
        yield "<h2>Samples</h2><p class='muted'>Not shown: learner.show_samples is false.</p>"
    for name in ("first", "last"):
        for group in kept.get(name, []):
            yield f"<h2>Sample of the {name} steps: step {_text(group.get('step'))}</h2>"
            yield f"<pre>{_text(group.get('prompt'))}</pre>"
            responses = group.get("responses") or []
            yield from _table([(str(each.get("reward")), str(each.get("text"))) for each in responses])


def _table(rows: Iterator[tuple[str, str]] | Sequence[tuple[str, str]]) -> Iterator[str]:
    yield "<table>"
    for name, value in rows:
        yield f"<tr><th>{_text(name)}</th><td>{_text(value)}</td></tr>"
    yield "</table>"


def _list(lines: Sequence[str], *, empty: str) -> Iterator[str]:
    if not lines:
        yield f"<p class='muted'>{empty}</p>"
        return
    yield "<ul>" + "".join(f"<li class='error'>{_text(line)}</li>" for line in lines) + "</ul>"


def _text(value: Any) -> str:
    return html.escape(str(value))
