"""The rooms keep apart: who may import what (the layout's rules, checked on the source)."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "services" / "asympo"
SERVICES = {"generator", "learner", "gateway", "evaluator"}
TOOLS = {"demo", "run", "lab", "bench", "chaos", "doctor", "ops"}
SOURCES = sorted(p for p in PACKAGE.rglob("*.py") if "v1" not in p.relative_to(PACKAGE).parts)


def imported_modules(path: Path) -> set[str]:
    """Every module the file names, nested imports included; relative ones made absolute."""
    names: set[str] = set()
    package = ["asympo", *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names.add(module)
            names.update(f"{module}.{alias.name}" for alias in node.names)
    return names


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
    if not str(inner).startswith("engines/vllm"):
        assert not imports_any(path, {"vllm"}), "vllm only in engines/vllm*"
    if room not in {"learner", "lab", "bench"} and not str(inner).startswith("engines/vllm"):
        assert not imports_any(path, {"torch"}), "torch only under learner, lab, bench and engines/vllm*"
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


def test_no_pickle_anywhere() -> None:
    for path in SOURCES:
        assert not imports_any(path, {"pickle", "cloudpickle", "dill", "joblib"}), path


# A room imports only the rooms before it, and those files of the learner that import no room.
LEARNER_ROOMS = ["page", "model", "log", "step", "state", "record", "publish", "replay", "servers"]
LEARNER_BASE = {"context", "control", "deadline", "launch", "metrics", "progress", "ranks", "settings"}


def test_rooms_of_the_learner_import_in_one_direction() -> None:
    for path in sorted((PACKAGE / "learner").rglob("*.py")):
        parts = path.relative_to(PACKAGE / "learner").parts
        if len(parts) == 1 and path.stem not in LEARNER_BASE:
            continue
        own = parts[0] if len(parts) > 1 else None
        before = LEARNER_ROOMS[: LEARNER_ROOMS.index(own)] if own else []
        allowed = {*before, *LEARNER_BASE, own}
        found = {n.split(".")[2] for n in imported_modules(path) if n.startswith("asympo.learner.")}
        assert found <= allowed, (
            f"{path.relative_to(PACKAGE)} may import only {sorted(filter(None, allowed))}"
        )
