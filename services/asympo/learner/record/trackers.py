"""Where the numbers of each step go: a JSONL file always; TensorBoard, W&B and MLflow when asked.

A tracker is not worth a run. Each of the three works in a thread of its own behind a bounded queue; whatever
it raises is logged and counted, and a server that hangs costs rows of that tracker and nothing else.
"""

import importlib
import logging
import math
import os
import queue
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from asympo.common.errors import BadSetting
from asympo.common.jsonl import JsonlWriter
from asympo.learner.settings import TrackerName, TrackerSettings

log = logging.getLogger(__name__)

_PACKAGES: dict[TrackerName, tuple[str, str]] = {
    "tensorboard": ("tensorboard.summary.writer.event_file_writer", "tensorboard"),
    "wandb": ("wandb", "wandb"),
    "mlflow": ("mlflow.tracking", "mlflow-skinny"),
}
"""For each tracker the module it needs and the package that brings it."""

_MAX_QUEUED_ROWS = 1000
_REOPEN_SECONDS = 30.0
_LOG_EVERY = 100
_MLFLOW_NAME_CHARS = 250


class Sink(Protocol):
    """One tracker's own API; only the thread of its `_Feed` calls it. Any method may raise anything."""

    def open(self) -> None: ...

    def log(self, step: int, numbers: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class Trackers:
    """Sends each row to the JSONL file and to every tracker asked for; never raises once it is built."""

    def __init__(
        self,
        settings: TrackerSettings,
        *,
        directory: Path,
        run: str,
        run_settings: Mapping[str, Any] | None = None,
        on_failure: Callable[[str], None] | None = None,
        sinks: Mapping[str, Sink] | None = None,
    ) -> None:
        """Trackers of one run.

        `directory` is the run's folder: `metrics.jsonl` and the local trackers' files go there.
        `run_settings` are shown beside the numbers; secrets must be masked already. `on_failure` gets the
        tracker's name once per row that did not reach it, from any thread. `sinks` replaces what `settings`
        would build. Raises BadSetting when a tracker's package or API key is missing, OSError when the file
        cannot be opened.
        """
        if sinks is None:
            described = dict(run_settings or {})
            sinks = {name: _sink(name, settings, directory, run, described) for name in settings.enabled}
        self.failures: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._on_failure = on_failure
        self._jsonl = JsonlWriter(directory / "metrics.jsonl")
        self._feeds = [_Feed(name, sink, self._failed) for name, sink in sinks.items()]

    def log(self, step: int, row: Mapping[str, Any]) -> None:
        """Record the numbers of one step; does not wait for any tracker but the file."""
        self.amend(step, row, row)

    def amend(self, step: int, row: Mapping[str, Any], added: Mapping[str, Any]) -> None:
        """Record what was `added` to the row of a step.

        The file gets all of the row, since its last row of a step is the one that counts.
        """
        try:
            self._jsonl.append({"step": step, **row})
        except OSError as error:
            self._failed("jsonl", error)
        numbers = {key: float(value) for key, value in added.items() if key != "step" and _is_number(value)}
        for feed in self._feeds:
            feed.put(step, numbers)

    def close(self, *, timeout_seconds: float = 15.0) -> None:
        """Let the trackers finish what is queued, all together within `timeout_seconds`."""
        deadline = time.monotonic() + timeout_seconds
        for feed in self._feeds:
            feed.finish()
        for feed in self._feeds:
            feed.join(max(0.0, deadline - time.monotonic()))
        self._jsonl.close()

    def _failed(self, name: str, error: BaseException | str) -> None:
        with self._lock:
            self.failures[name] += 1
            num_failures = self.failures[name]
        if num_failures % _LOG_EVERY == 1:
            details = error if isinstance(error, BaseException) else None
            log.warning(
                "The tracker %s failed (%s); training goes on without it",
                name,
                error,
                extra={"tracker": name, "failures": num_failures},
                exc_info=details,
            )
        if self._on_failure is not None:
            self._on_failure(name)


class _Feed:
    """A thread that hands queued rows to one sink, opening it first and again after a failed opening."""

    def __init__(self, name: str, sink: Sink, failed: Callable[[str, BaseException | str], None]) -> None:
        self._name, self._sink, self._failed = name, sink, failed
        self._rows: queue.Queue[tuple[int, Mapping[str, float]] | None] = queue.Queue(_MAX_QUEUED_ROWS)
        self._is_finishing = threading.Event()
        self._is_open = False
        self._reopen_at = 0.0
        self._thread = threading.Thread(target=self._work, name=f"tracker-{name}", daemon=True)
        self._thread.start()

    def put(self, step: int, numbers: Mapping[str, float]) -> None:
        try:
            self._rows.put_nowait((step, numbers))
        except queue.Full:
            self._failed(self._name, f"it is {_MAX_QUEUED_ROWS} rows behind")

    def finish(self) -> None:
        self._is_finishing.set()
        try:
            self._rows.put_nowait(None)
        except queue.Full:
            log.debug("The tracker %s is full; its thread sees the flag instead", self._name)

    def join(self, timeout_seconds: float) -> None:
        self._thread.join(timeout_seconds)
        if self._thread.is_alive():
            self._failed(self._name, "it did not finish in time")

    def _work(self) -> None:
        while True:
            item = None if self._is_finishing.is_set() and self._rows.empty() else self._rows.get()
            if item is None:
                break
            self._guarded(lambda item=item: self._deliver(*item))  # type: ignore[misc]
        if self._is_open:
            self._guarded(self._sink.close)

    def _deliver(self, step: int, numbers: Mapping[str, float]) -> None:
        if not self._is_open:
            if time.monotonic() < self._reopen_at:
                raise ConnectionError("could not be opened yet")
            self._reopen_at = time.monotonic() + _REOPEN_SECONDS
            self._sink.open()
            self._is_open = True
        self._sink.log(step, numbers)

    def _guarded(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001 - the edge to foreign code: logged with traceback and counted
            self._failed(self._name, error)


class _TensorBoard:
    """Event files in a folder, through TensorBoard's own writer: neither torch nor TensorFlow is needed."""

    def __init__(self, *, folder: Path) -> None:
        self._folder = folder
        self._started = False

    def open(self) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer = EventFileWriter(str(self._folder))

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary

        if not self._started:
            # Makes TensorBoard forget the steps that a resumed learner trains again.
            start = SessionLog(status=SessionLog.START)
            self._writer.add_event(Event(wall_time=time.time(), step=step, session_log=start))
            self._started = True
        values = [Summary.Value(tag=key, simple_value=value) for key, value in numbers.items()]
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """One W&B run; our own step is a metric, because a resumed learner goes back and W&B's counter cannot."""

    def __init__(
        self, *, settings: TrackerSettings, folder: Path, run: str, described: dict[str, Any]
    ) -> None:
        import wandb

        self._wandb, self._settings, self._folder = wandb, settings, folder
        self._run_name, self._described = run, described
        if settings.wandb_mode == "online" and not os.environ.get("WANDB_API_KEY") and not self._has_login():
            raise BadSetting(
                "trackers.wandb_mode is online and there is no W&B API key; set WANDB_API_KEY, run "
                "'wandb login', or choose offline"
            )

    def _has_login(self) -> bool:
        return bool(self._wandb.login(prompt=False, verify=False))

    def open(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        quiet = self._wandb.Settings(silent=True, console="off", disable_git=True, disable_code=True)
        self._run = self._wandb.init(
            project=self._settings.project,
            name=self._run_name,
            group=self._run_name,
            mode=self._settings.wandb_mode,
            dir=str(self._folder),
            config=self._described,
            settings=quiet,
        )
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log({"step": step, **numbers})

    def close(self) -> None:
        self._run.finish()


class _Mlflow:
    """One MLflow run, through a client of its own: MLflow's global state stays untouched."""

    def __init__(
        self, *, settings: TrackerSettings, folder: Path, run: str, described: dict[str, Any]
    ) -> None:
        self._uri = settings.mlflow_uri or folder.resolve().as_uri()
        self._project, self._run_name, self._described = settings.project, run, described

    def open(self) -> None:
        if self._uri.startswith("file:"):
            # MLflow 3 refuses folders unless told otherwise, and its slim package has no database store.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        self._metric = Metric
        client = MlflowClient(tracking_uri=self._uri)
        experiment = client.get_experiment_by_name(self._project)
        experiment_id = experiment.experiment_id if experiment else client.create_experiment(self._project)
        self._run_id = client.create_run(experiment_id, run_name=self._run_name).info.run_id
        params = [Param(key, str(value)[:500]) for key, value in list(self._described.items())[:100]]
        client.log_batch(self._run_id, params=params)
        self._client = client

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        metrics = [self._metric(_mlflow_name(key), value, now, step) for key, value in numbers.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def close(self) -> None:
        self._client.set_terminated(self._run_id)


def _mlflow_name(name: str) -> str:
    """A name that MLflow takes; it refuses all numbers of a step for one that it does not."""
    parts = (re.sub(r"[^\w.\- :]", "_", part) for part in name.split("/"))
    whole = "/".join(re.sub(r"^\.\.|^\.?$", "_", part) for part in parts)
    return whole[:_MLFLOW_NAME_CHARS].rstrip("/")


def _sink(
    name: TrackerName, settings: TrackerSettings, directory: Path, run: str, described: dict[str, Any]
) -> Sink:
    """The tracker of that name; BadSetting when it cannot be imported."""
    module, package = _PACKAGES[name]
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise BadSetting(
            f"the tracker {name} needs the package {package}, which cannot be imported ({error}); "
            f"run pip install '{package}' or remove {name} from trackers.enabled"
        ) from None
    folder = directory / name
    if name == "tensorboard":
        return _TensorBoard(folder=folder)
    kind = _Wandb if name == "wandb" else _Mlflow
    return kind(settings=settings, folder=folder, run=run, described=described)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
