"""Panels as data. In an expression, `$s` stands for the selector of the run chosen above."""

from dataclasses import dataclass

RUNBOOKS = "docs/runbooks.md"
"""The chart puts the value of that name in its place."""
SELECTOR = 'namespace=~"$namespace",run=~"$run"'


@dataclass(frozen=True, kw_only=True)
class Query:
    """One curve, or one for each label."""

    expr: str
    legend: str


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One panel."""

    title: str
    description: str
    """What it means and what to make of it."""
    queries: tuple[Query, ...]
    unit: str = "short"
    is_stacked: bool = False
    is_number: bool = False
    """Only the newest value."""
    colours: tuple[tuple[float, str], ...] = ()
    """Of a number: from which value on it has which colour, smallest first; without, it has none."""
    words: tuple[tuple[int, str], ...] = ()
    """What is written in place of a number."""
    alerts: tuple[str, ...] = ()
    """Alerts on what it shows: it links to their runbooks."""
    min: float | None = None
    max: float | None = None


@dataclass(frozen=True, kw_only=True)
class Board:
    """One dashboard: rows of panels."""

    name: str
    title: str
    description: str
    rows: tuple[tuple[str, tuple[Panel, ...]], ...]


def query(expr: str, legend: str) -> Query:
    return Query(expr=expr.replace("$s", SELECTOR), legend=legend)


def gauge(name: str, legend: str) -> Query:
    return query(f"max by (run) ({name}{{$s}})", legend)


def rate(name: str, legend: str, labels: str = "") -> Query:
    by = f"run, {labels}" if labels else "run"
    return query(f"sum by ({by}) (rate({name}{{$s}}[$__rate_interval]))", legend)


def quantile(quantile: float, name: str, legend: str) -> Query:
    return query(
        f"histogram_quantile({quantile}, sum by (run, le) (rate({name}_bucket{{$s}}[$__rate_interval])))",
        legend,
    )


def ratio(above: str, below: str, legend: str) -> Query:
    rates = (f"sum by (run) (rate({name}{{$s}}[$__rate_interval]))" for name in (above, below))
    return query(" / ".join(rates), legend)


def quantiles(name: str, verb: str = "are quicker") -> tuple[Query, ...]:
    return (quantile(0.5, name, f"half {verb}"), quantile(0.95, name, f"95 % {verb}"))
