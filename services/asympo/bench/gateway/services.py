"""Broker, gateway and engines of the benchmark, each a process, and the log as a learner reads it."""

import os
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import psutil

from asympo.common.codec import WireLimits, decode_group
from asympo.common.records import RolloutGroup
from asympo.common.rollout_log import Broker, Fence, RunConfig, RunLog, RunState
from asympo.common.trained_ids import TrainedIds
from asympo.local.broker import LocalBroker, find_broker_binary
from asympo.local.ports import free_port
from asympo.local.process import Process
from asympo.testing.tiny_model import write_tiny_model

GROUP_SIZE = 8
_START_SECONDS = 60.0
_NUM_PROMPTS = 321
"""Of the addition task as it is set up by default."""
_MAX_OPEN_GROUPS = 100_000
"""The log takes everything, so that nobody waits for a learner."""


@dataclass(kw_only=True, eq=False)
class GatewayServices:
    """What runs."""

    directory: Path
    broker: LocalBroker
    gateway: Process
    http: str
    grpc: str
    engines: list[Process]
    doors: list[str]
    run_log: RunLog
    fence: Fence

    def groups(self) -> list[RolloutGroup]:
        """All that is in the log, each read once and in order."""
        found: list[RolloutGroup] = []
        sequence = 0
        while entries := self.run_log.reader.read(
            after_sequence=sequence, max_count=500, block_seconds=0.2, fence=self.fence
        ):
            sequence = entries[-1].sequence
            found += [decode_group(entry.payload, limits=WireLimits()) for entry in entries]
        return found

    def cpu_seconds(self) -> Counter[str]:
        """Of each process so far; `client` is this one."""
        pids = {"gateway": self.gateway.pid, "broker": self.broker.pid, "client": os.getpid()}
        return Counter({name: sum(psutil.Process(pid).cpu_times()[:2]) for name, pid in pids.items()})


@contextmanager
def services(*, num_engines: int = 0, mean_delay_seconds: float = 0.0) -> Iterator[GatewayServices]:
    """Starts them and ends them."""
    with ExitStack() as ending:
        directory = Path(ending.enter_context(tempfile.TemporaryDirectory(prefix="asympo-bench-")))
        binary = find_broker_binary().path
        broker = LocalBroker(binary=binary, directory=directory, log_path=directory / "broker.log")
        ending.callback(broker.start().kill)
        connection = Broker.connect(broker.url)
        ending.callback(connection.close)
        run_log, fence = _start_run(connection, model=write_tiny_model(directory / "model"))
        engines, doors = [], []
        for number in range(num_engines):
            port = free_port()
            engines.append(stub("engine", port, mean_delay_seconds, log_path=directory / f"engine-{number}"))
            doors.append(f"http://127.0.0.1:{port}/v1")
        for engine in engines:
            ending.callback(engine.start().kill)
        http_port, grpc_port = free_port(), free_port()
        gateway = Process(
            command=[
                *(sys.executable, "-m", "asympo.cli", "gateway", "--run", run_log.run),
                *("--redis-url", broker.url, "--http-port", str(http_port), "--grpc-port", str(grpc_port)),
                *(word for door in doors for word in ("--doors", door)),
            ],
            log_path=directory / "gateway.log",
            cores=gateway_cores(),
        )
        ending.callback(gateway.start().kill)
        http = f"http://127.0.0.1:{http_port}"
        for address in (f"{http}/readyz", *doors):
            wait_for_answer(gateway, address)
        yield GatewayServices(
            directory=directory,
            broker=broker,
            gateway=gateway,
            http=http,
            grpc=f"grpc://127.0.0.1:{grpc_port}",
            engines=engines,
            doors=doors,
            run_log=run_log,
            fence=fence,
        )


def stub(kind: str, port: int, more: object, *, log_path: Path, cores: Sequence[int] = ()) -> Process:
    """An engine or a proxy, not yet started."""
    command = [sys.executable, "-m", "asympo.bench.gateway.stub_engine", kind, str(port), str(more)]
    return Process(command=command, log_path=log_path, cores=cores)


def wait_for_answer(process: Process, address: str) -> None:
    """Until there is any answer but 503."""

    def answers() -> bool:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return True
        except urllib.error.HTTPError as error:
            return error.code != 503
        except (OSError, HTTPException):
            return False

    process.until(answers, seconds=_START_SECONDS, what=f"answer of {address}")


def _start_run(broker: Broker, *, model: Path) -> tuple[RunLog, Fence]:
    run_log = RunLog(broker, f"bench-{time.time_ns()}")
    config = RunConfig(
        run=run_log.run,
        group_size=GROUP_SIZE,
        groups_per_step=_MAX_OPEN_GROUPS,
        max_groups_per_step=_MAX_OPEN_GROUPS,
        max_staleness=1,
        num_prompts=_NUM_PROMPTS,
        model=str(model),
        task={"name": "addition"},
    )
    run_log.state.create_or_join(config)
    fence = run_log.fence.take("bench")
    trained = TrainedIds(num_prompts=config.num_prompts)
    fence = run_log.reconciler.reconcile(fence, committed=None, trained=trained).fence
    run_log.policies.announce(fence, step=0, digest="0")
    run_log.state.set(RunState.RUNNING, fence=fence)
    return run_log, fence


def gateway_cores() -> list[int]:
    """One for the gateway alone: where there are several, the others' processes stay off it by themselves."""
    if not hasattr(os, "sched_getaffinity"):
        return []
    return sorted(os.sched_getaffinity(0))[:1]
