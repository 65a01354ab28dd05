"""Held-out accuracy before and after, fitted into the run: what to measure when."""

import json
import math
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import grpc

from asympo.common.errors import AsympoError
from asympo.common.proxies import DIRECT_CHANNEL
from asympo.local.whole_file import write_whole
from asympo.run.held_out.evaluation import Accuracy, Episodes, Evaluation, HeldOut, render_held_out
from asympo.v1 import learner_service_pb2 as messages
from asympo.v1.learner_service_pb2_grpc import LearnerServiceStub

_CALL_SECONDS = 10.0
_TURN_SECONDS = 1.0


class HeldOutMeasurements:
    """Measures the first and the last policy; what was measured outlives a restart of the supervisor."""

    def __init__(
        self,
        *,
        directory: Path,
        learner_settings: Path,
        settings: Any,
        generator_address: str,
        max_prompts: int,
        allow_python: bool = False,
        episodes: Episodes | None = None,
    ) -> None:
        self._directory = directory
        self._learner_settings = learner_settings
        self._settings = settings
        self._allow_python = allow_python
        self._episodes = episodes
        self._generator_address = generator_address
        self._max_prompts = max_prompts
        self._held_out: HeldOut | None = None
        self._rendering: threading.Thread | None = None
        self._render_problem = ""
        self._evaluation: Evaluation | None = None
        self.before: Accuracy | None = self._load("before")
        self.after: Accuracy | None = self._load("after")
        self.is_holding_learner = False
        self._gave_up = False

    @property
    def is_baseline_due(self) -> bool:
        return self.before is None and not self._gave_up

    def is_measured_at(self, step: int) -> bool:
        """The result after training is already there, and of this policy."""
        return self.after is not None and self.after.policy_step == step

    def prepare(self) -> None:
        """Begins to render the prompts, which takes seconds the first time."""
        if self._rendering is None:
            self._rendering = threading.Thread(target=self._render, name="held-out", daemon=True)
            self._rendering.start()

    def _render(self) -> None:
        try:
            self._held_out = render_held_out(
                self._learner_settings, self._directory / "held_out.json", max_prompts=self._max_prompts
            )
        except (AsympoError, OSError, subprocess.SubprocessError) as error:
            self._render_problem = str(error)
        else:
            if not self._held_out.prompts:
                self._render_problem = "the task holds no prompts out"

    def hold_learner(self) -> None:
        """Keeps the learner from publishing until the baseline is measured; called until it answers.

        It may make the steps before that.
        """
        request = messages.LearnerServicePauseRequest(
            reason="measuring the baseline", after_step=self._last_step_of_first_policy
        )
        if self._call_learner("Pause", request):
            self.is_holding_learner = True

    def release_learner(self) -> bool:
        """Lets the learner step; True once it has heard."""
        if self.is_holding_learner and self._call_learner("Resume", messages.LearnerServiceResumeRequest()):
            self.is_holding_learner = False
        return not self.is_holding_learner

    def measure_baseline(self, *, step: int, backlog: int) -> str | None:
        """Called in turn while the baseline is due and a generator serves; a sentence when it ends.

        Where the learner may step meanwhile, the groups of its first step (`backlog`) are sampled first.
        """
        if self._evaluation is None and step > self._last_step_of_first_policy:
            self._gave_up = True
            return "no baseline: the run had already trained when its accuracy could be measured"
        if self._render_problem:
            self._gave_up = True
            return f"no baseline: {self._render_problem}"
        if self._evaluation is None:
            is_step_ahead = backlog >= self._settings.groups_per_step or step > 0
            if self._held_out is not None and (is_step_ahead or not self._last_step_of_first_policy):
                self._begin(self._held_out)
            return None
        if self._evaluation.is_alive():
            return None
        done, self._evaluation = self._evaluation, None
        if done.accuracy is None:
            self._gave_up = True
            return f"no baseline: {done.problem}"
        self.before = done.accuracy
        self._save("before", self.before)
        return f"held-out accuracy before training: {self.before}"

    def measure_after(self, *, timeout_seconds: float, go_on: Callable[[], bool]) -> str:
        """Waits until the policy that is served now is measured; a sentence about the result.

        `go_on` is called every second or so, to look after what else there is; False ends the wait.
        """
        self.prepare()
        problem = _wait(self._rendering, timeout_seconds=timeout_seconds, go_on=go_on)
        problem = self._render_problem or problem
        if self._held_out is None or problem:
            return f"held-out accuracy after training is unknown: {problem}"
        done = self._begin(self._held_out)
        problem = _wait(done, timeout_seconds=timeout_seconds, go_on=go_on)
        self._evaluation = None
        if done.accuracy is None:
            return f"held-out accuracy after training is unknown: {done.problem or problem}"
        self.after = done.accuracy
        self._save("after", self.after)
        return f"held-out accuracy after training: {self.after}"

    @property
    def _last_step_of_first_policy(self) -> int:
        """The last step before the learner publishes; 0 where it may end earlier, when prompts run out."""
        if self._settings.num_epochs:
            return 0
        return int(min(self._settings.publish_every, self._settings.total_steps or math.inf)) - 1

    def _begin(self, held_out: HeldOut) -> Evaluation:
        self._evaluation = Evaluation(
            address=self._generator_address,
            held_out=held_out,
            settings=self._settings,
            allow_python=self._allow_python,
            episodes=self._episodes,
        )
        self._evaluation.start()
        return self._evaluation

    def _call_learner(self, method: str, request: Any) -> bool:
        try:
            with grpc.insecure_channel(self._settings.grpc_address, options=DIRECT_CHANNEL) as channel:
                getattr(LearnerServiceStub(channel), method)(request, timeout=_CALL_SECONDS)
        except grpc.RpcError:
            return False
        return True

    def _load(self, name: str) -> Accuracy | None:
        try:
            return Accuracy(**json.loads((self._directory / f"held_out_{name}.json").read_text()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise AsympoError(
                f"held_out_{name}.json in {self._directory} is damaged ({error}): delete it"
            ) from None

    def _save(self, name: str, accuracy: Accuracy) -> None:
        write_whole(self._directory / f"held_out_{name}.json", json.dumps(asdict(accuracy)) + "\n")


def _wait(thread: threading.Thread | None, *, timeout_seconds: float, go_on: Callable[[], bool]) -> str:
    """Until it has ended; otherwise why nobody waits any longer."""
    deadline = time.monotonic() + timeout_seconds
    while thread is not None and thread.is_alive():
        if not go_on():
            return "the run was stopped"
        if time.monotonic() > deadline:
            return "no answer in time"
        thread.join(timeout=_TURN_SECONDS)
    return ""
