"""The rooms keep apart: who may import what (the layout's rules, checked on the source)."""

import ast
import functools
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "services" / "asympo"
SERVICES = {"generator", "learner", "gateway", "evaluator"}
TOOLS = {"demo", "run", "lab", "bench", "chaos", "doctor", "ops"}
TRIALS = {"bench", "chaos"}
SOURCES = sorted(p for p in PACKAGE.rglob("*.py") if "v1" not in p.relative_to(PACKAGE).parts)


@functools.cache
def imports_of(path: Path) -> list[tuple[str, str]]:
    """(module, name taken from it or ""), nested imports included; relative ones made absolute."""
    found: list[tuple[str, str]] = []
    package = ["asympo", *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found += [(module, alias.name) for alias in node.names]
    return found


def imported_modules(path: Path) -> set[str]:
    """Every module the file names, and every name it takes from one."""
    found = imports_of(path)
    return {module for module, _ in found} | {f"{module}.{name}" for module, name in found if name}


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(["asympo", *(parts[:-1] if parts[-1] == "__init__" else parts)])


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else ""


def imports_any(path: Path, roots: set[str]) -> set[str]:
    return {n for n in imported_modules(path) if any(n == r or n.startswith(r + ".") for r in roots)}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_module_keeps_to_its_room(path: Path) -> None:
    room, inner = room_of(path), path.relative_to(PACKAGE)
    found = imported_modules(path)
    if room in SERVICES:
        others = {f"asympo.{s}" for s in SERVICES - {room}}
        assert not imports_any(path, others), "services never import each other"
    if room in {"common", "engines", "tasks", "rewards"}:
        assert not imports_any(path, {f"asympo.{s}" for s in SERVICES | TOOLS}), f"{room} imports no service"
    if room == "client":
        others = {f"asympo.{r}" for r in SERVICES | TOOLS | {"engines", "tasks", "rewards", "local"}}
        assert not imports_any(path, others | {"transformers", "numpy"}), "the client is light: only common"
    if room == "local":
        others = {f"asympo.{s}" for s in SERVICES | TOOLS | {"testing", "engines", "tasks", "rewards"}}
        assert not imports_any(path, others), "local imports only common"
    is_gpu_check = str(inner).startswith("doctor/gpu/")
    if room not in TRIALS | {"testing"} and not is_gpu_check:
        assert not imports_any(path, {"asympo.testing"}), "only what tries the product imports testing"
    if not str(inner).startswith("engines/vllm"):
        assert not imports_any(path, {"vllm"}), "vllm only in engines/vllm*"
    is_engine = str(inner).startswith("engines/vllm")
    if room not in {"learner", "lab", "bench"} and not (is_engine or is_gpu_check):
        assert not imports_any(path, {"torch"}), (
            "torch only under learner, lab, bench, doctor/gpu and engines/vllm*"
        )
    if not str(inner).startswith("common/rollout_log/"):
        assert not imports_any(path, {"redis"}), "redis only in common/rollout_log"
    if str(inner) != "common/checkpoints/bucket.py":
        assert not imports_any(path, {"boto3", "botocore"}), "boto3 only in common/checkpoints/bucket.py"
    if path.name != "metrics.py" and str(inner) != "common/telemetry.py":
        assert "prometheus_client" not in found, (
            "prometheus_client only in metrics.py and common/telemetry.py"
        )
    if str(inner) != "common/tracing.py":
        assert not imports_any(path, {"opentelemetry"}), "opentelemetry only in common/tracing.py"
    if path.name == "settings.py":
        heavy = {"torch", "vllm", "transformers", "redis", "grpc", "boto3", "opentelemetry"}
        assert not imports_any(path, heavy), "settings import nothing heavy"


def test_every_room_says_what_belongs_there() -> None:
    for path in (path for path in SOURCES if path.name == "__init__.py"):
        assert ast.get_docstring(ast.parse(path.read_text())), (
            f"{path}: begin it with a sentence about the room"
        )


def test_no_pickle_anywhere() -> None:
    for path in SOURCES:
        assert not imports_any(path, {"pickle", "cloudpickle", "dill", "joblib"}), path


# A room imports only the rooms before it, and those files of its service or tool that import no room.
ROOMS = {
    "learner": ["page", "model", "log", "step", "state", "record", "publish", "replay", "servers"],
    "run": ["held_out", "prepare", "processes", "console", "report"],
}
BASE = {
    "learner": {
        "context",
        "control",
        "deadline",
        "device",
        "evals",
        "gpu_turn",
        "torchrun",
        "metrics",
        "progress",
        "ranks",
        "samples",
        "settings",
    },
    "run": {"audit", "directory", "events", "notify", "settings"},
}


@pytest.mark.parametrize("house", ROOMS)
def test_rooms_import_in_one_direction(house: str) -> None:
    for path in sorted((PACKAGE / house).rglob("*.py")):
        parts = path.relative_to(PACKAGE / house).parts
        if len(parts) == 1 and path.stem not in BASE[house]:
            continue
        own = parts[0] if len(parts) > 1 else None
        before = ROOMS[house][: ROOMS[house].index(own)] if own else []
        allowed = {*before, *BASE[house], own}
        found = {n.split(".")[2] for n in imported_modules(path) if n.startswith(f"asympo.{house}.")}
        assert found <= allowed, (
            f"{path.relative_to(PACKAGE)} may import only {sorted(filter(None, allowed))}"
        )


# Edges that close a cycle and may stay: "asympo.a -> asympo.b" and why.
KNOWN_EDGES: dict[str, str] = {}


def find_cycle(edges: dict[str, set[str]]) -> list[str]:
    """The modules of one cycle in order, the first one again at the end; empty when there is none."""
    done: set[str] = set()
    for start in sorted(edges):
        path, turns = [start], [iter(sorted(edges[start] - done))]
        while path:
            following = next(turns[-1], None)
            if following is None:
                done.add(path.pop())
                turns.pop()
            elif following in path:
                return [*path[path.index(following) :], following]
            elif following not in done:
                path.append(following)
                turns.append(iter(sorted(edges.get(following, set()))))
    return []


def test_modules_import_without_cycles() -> None:
    """Imports inside functions and for types alone count too: what they need is a cycle of knowledge."""
    modules = {module_of(path): path for path in SOURCES}
    edges: dict[str, set[str]] = {}
    for module, path in modules.items():
        # `from asympo.room import module` needs the module, not the room.
        named = {f"{at}.{name}" if f"{at}.{name}" in modules else at for at, name in imports_of(path)}
        needed = (named & modules.keys()) - {module}
        edges[module] = {name for name in needed if f"{module} -> {name}" not in KNOWN_EDGES}
    assert find_cycle(edges) == []


def test_find_cycle_finds_one_behind_a_module_seen_before() -> None:
    edges = {"a": {"b", "c"}, "b": {"d"}, "c": {"d", "e"}, "d": set[str](), "e": {"f"}, "f": {"c"}}
    assert find_cycle(edges) == ["c", "e", "f", "c"]
    assert find_cycle({**edges, "f": set()}) == []
