"""Keeps one run going on this machine, from the first process to the summary."""

import logging
import os
import time
from collections.abc import Mapping
from typing import Any

from asympo.common.errors import AsympoError, NoProgress
from asympo.common.lifecycle import StopSignal
from asympo.common.rollout_log import Broker, PolicyAnnouncement, RunLog, RunState
from asympo.local.log_file import keep_small
from asympo.local.service import Service
from asympo.run.console.view import Snapshot, View
from asympo.run.directory import RunDirectory
from asympo.run.events import write_event
from asympo.run.held_out.measurements import HeldOutMeasurements
from asympo.run.notify import notify
from asympo.run.prepare.disk import check_room_left
from asympo.run.prepare.plan import Plan
from asympo.run.processes.guard import Guard
from asympo.run.processes.memory import MemoryWatch
from asympo.run.processes.services import Services
from asympo.run.processes.status import GeneratorTotals, History, HttpStatus
from asympo.run.processes.totals import Totals
from asympo.run.processes.trouble import ProgressWatch, Warnings
from asympo.run.report.outcome import LastPolicy, RunOutcome
from asympo.run.report.samples import keep_samples

log = logging.getLogger(__name__)

_POLL_SECONDS = 1.0
_LOOP_SECONDS = 0.2
_LAST_POLICY_SECONDS = 180.0
_EVALUATION_SECONDS = 600.0
_SAMPLES_SECONDS = 5.0


class Supervisor:
    """One call of `run` from start to end; every way out stops what was started."""

    def __init__(
        self,
        *,
        plan: Plan,
        services: Services,
        directory: RunDirectory,
        view: View,
        stop: StopSignal,
        held_out: HeldOutMeasurements | None,
    ) -> None:
        self._plan, self._services, self._directory = plan, services, directory
        self._view, self._stop, self._held_out = view, stop, held_out
        self._learner_http = HttpStatus.of(plan.learner.settings)
        self._generator_http = [HttpStatus.of(each.settings) for each in plan.generators]
        self._evaluator_http = HttpStatus.of(plan.evaluator.settings) if plan.evaluator else None
        self._history = History()
        self._generator_totals = GeneratorTotals()
        self._generator_status: list[Mapping[str, Any]] = [{} for _ in plan.generators]
        self._memory = MemoryWatch()
        self._status: Mapping[str, Any] = {}
        self._step = self._num_appended = 0
        self._phase = "starting"
        self._ending: tuple[str, str] | None = None
        self._started_at = time.monotonic()
        self._was_serving = False
        self._samples_at = 0.0
        self._warnings = Warnings()
        section = plan.file.run
        self._progress = ProgressWatch(
            failing_seconds=section.failing_seconds,
            stall_seconds=section.stall_seconds,
            give_up_seconds=section.give_up_seconds,
        )

    def run(self) -> RunOutcome:
        """Also where a process cannot go on, which the outcome says; the rest is stopped in order first."""
        self._memory.start()
        broker: Broker | None = None
        failure: AsympoError | None = None
        is_finished, killed = False, list[str]()
        last_policy: LastPolicy | None = None
        try:
            write_event(self._directory.path, f"begun by process {os.getpid()}", kind="begin")
            self._services.be_guarded(self._guard(), drain_seconds=self._drain_seconds)
            for text in (*self._services.description, *self._plan.notes):
                self._note(text)
            self._services.start_broker()
            broker = Broker.connect(self._plan.broker_url)
            for warning in broker.info().warnings:
                self._note(f"broker: {warning}")
            run_log = RunLog(broker, self._directory.path.name)
            self._services.start()
            is_finished = self._watch(run_log)
            if is_finished:
                last_policy = self._finish(run_log)
        except AsympoError as error:
            failure = error
        except OSError as error:
            failure = AsympoError(f"the supervisor cannot go on: {error}")
        except Exception as error:
            failure = AsympoError(f"the supervisor met an error that nobody foresaw: {error!r}")
            raise
        finally:
            if broker is not None:
                broker.close()
            killed, totals = self._stop_all(is_finished=is_finished, failure=failure)
        return RunOutcome(
            failure=failure,
            warnings=tuple(self._warnings.lines),
            is_finished=is_finished,
            step=self._step,
            totals=totals,
            held_out=self._held_out,
            last_policy=last_policy,
            killed=tuple(killed),
        )

    def _stop_all(self, *, is_finished: bool, failure: AsympoError | None) -> tuple[list[str], Totals]:
        """In order; notes how the run ended. Names of those that had to be killed, and what was counted."""
        self._phase = "stopping"
        self._poll()
        section = self._plan.file.run
        killed = self._services.stop(
            note=self._note,
            learner_seconds=section.learner_drain_seconds,
            generator_seconds=section.generator_drain_seconds,
        )
        self._memory.stop()
        earlier = Totals.from_dict({})
        try:
            earlier = Totals.from_dict(self._directory.read_mark().get("totals", {}))
            # The learner steps on while it drains.
            self._step = max(self._step, self._directory.step)
        except OSError as error:
            self._note(f"the directory of the run cannot be read: {error}")
        totals = self._totals(earlier)
        try:
            self._directory.write_mark(
                totals=totals.to_dict(),
                step=self._step,
                is_finished=is_finished,
                failure=str(failure) if failure else None,
            )
        except OSError as error:
            # A full disk is why it ends, most likely: that reason must not be lost over this one.
            self._note(f"how the run ended cannot be written down: {error}")
        self._say_how_it_ended(is_finished=is_finished, failure=failure)
        return killed, totals

    def _watch(self, run_log: RunLog) -> bool:
        """Until the learner has finished (True) or a person stops the run (False)."""
        self._phase = "loading the model into learner and generator"
        if self._held_out is not None and self._held_out.is_baseline_due:
            self._held_out.prepare()
        next_poll = 0.0
        while not self._stop.is_set:
            for text in self._services.check():
                self._note(text)
            if self._services.learner.has_ended and self._services.learner.exit_code == 0:
                return self._has_finished(run_log)
            self._refuse_dead_ends()
            if time.monotonic() >= next_poll:
                self._poll()
                self._examine()
                self._look_for_trouble()
                next_poll = time.monotonic() + _POLL_SECONDS
            self._stop.wait(_LOOP_SECONDS)
        self._note(f"{self._stop.reason}: stopping in order (once more to force)")
        return False

    def _look_for_trouble(self) -> None:
        """Says what the services warn about; raises NoProgress when the run cannot succeed."""
        section = self._plan.file.run
        max_bytes = int(section.max_log_mb * 1e6)
        self._services.keep_logs_small(max_bytes=max_bytes)
        keep_small(self._directory.path / "logs" / "supervisor.log", max_bytes=max_bytes)
        if not self._was_serving or self._status.get("paused"):
            self._progress.rest()
        text = self._progress.note(
            step=self._step,
            # Those of a gateway too, which no generator counts.
            num_groups=self._num_appended + int(self._generator_totals.total("groups_appended")),
            num_failures=int(self._generator_totals.total("prompt_failures")),
            cause=self._warnings.likely_cause,
        )
        if text:
            self._note(text)
            for problem in self._notify("stalled", text, self._stop):
                self._note(problem)
        check_room_left(
            self._directory.path,
            keep_free_bytes=section.keep_free_mb * 1e6,
            max_archive_bytes=section.max_archive_gb * 1e9,
        )
        if time.monotonic() >= self._samples_at:
            self._samples_at = time.monotonic() + _SAMPLES_SECONDS
            shown = self._learner_http.get("/v1/samples?limit=4") or {}
            keep_samples(self._directory.path, shown.get("groups") or [])

    def _has_finished(self, run_log: RunLog) -> bool:
        commit = run_log.commits.last()
        if commit is not None:
            self._step = max(self._step, commit.step)
        self._view.update(self._snapshot(), self._history.complete(self._directory.path / "metrics.jsonl"))
        if run_log.state.get() is RunState.FINISHED:
            return True
        self._note(f"the learner stopped at step {self._step} although the run is not finished")
        return False

    def _refuse_dead_ends(self) -> None:
        self._services.refuse_dead_ends()
        limit = self._plan.file.run.start_timeout_seconds
        if not self._was_serving and time.monotonic() - self._started_at > limit:
            raise NoProgress(
                f"no generator served a policy within {limit:g} s (run.start_timeout_seconds): see "
                f"{self._services.generators[0].log_path}"
            )

    def _examine(self) -> None:
        """The baseline: the learner publishes nothing until it is measured."""
        serving = next((each for each in self._generator_status if each.get("policy_step") is not None), None)
        self._was_serving = self._was_serving or serving is not None
        held_out = self._held_out
        if held_out is None or not held_out.is_baseline_due:
            if held_out is None or held_out.release_learner():
                self._phase = "training" if self._was_serving else self._phase
            return
        if self._status:
            # Every time: a learner that was started again meanwhile knows of no pause.
            held_out.hold_learner()
        if held_out.is_holding_learner and serving is not None:
            self._phase = "measuring held-out accuracy before training"
            backlog = int(self._status.get("backlog") or 0)
            text = held_out.measure_baseline(step=self._step, backlog=backlog)
            if text:
                self._note(text)

    def _finish(self, run_log: RunLog) -> LastPolicy | None:
        """After the last step: the generator loads the last policy and is examined."""
        self._wait_for_evaluator()
        latest = run_log.policies.latest()
        if self._held_out is None:
            return None
        if latest is not None and self._held_out.is_measured_at(latest.step):
            return LastPolicy(step=latest.step, is_served=True, wait_seconds=0.0)
        return self._measure_last(latest, run_log, self._held_out)

    def _measure_last(
        self, latest: PolicyAnnouncement | None, run_log: RunLog, held_out: HeldOutMeasurements
    ) -> LastPolicy:
        """Again if the generator was started again meanwhile, as long as there is time."""
        generator, deadline = self._services.generators[0], time.monotonic() + _EVALUATION_SECONDS
        earlier, waited, is_served, text = held_out.after, 0.0, False, ""
        while not self._stop.is_set:
            life, began = generator.num_restarts, time.monotonic()
            self._phase = "waiting for the generator to serve the last policy"
            is_served = latest is not None and self._is_served(latest, run_log)
            waited += time.monotonic() - began
            if not (is_served or self._stop.is_set):
                self._note("the generator does not serve the last policy; the one it serves is measured")
            self._phase = "measuring held-out accuracy after training"
            text = held_out.measure_after(timeout_seconds=_EVALUATION_SECONDS, go_on=self._look_after)
            self._note(text)
            is_same = generator.has_ended or (generator.is_running and generator.num_restarts == life)
            if held_out.after is not earlier or is_same or time.monotonic() > deadline:
                break
        if self._stop.is_set and held_out.after is earlier:
            text = "the run was stopped before the last policy was measured"
        step = None if latest is None else latest.step
        return LastPolicy(step=step, is_served=is_served, wait_seconds=waited, problem=text)

    def _wait_for_evaluator(self) -> None:
        """The last policy is measured too; an evaluator that died stops nobody."""
        evaluator, deadline = self._services.evaluator, time.monotonic() + _EVALUATION_SECONDS
        if evaluator is None:
            return
        self._phase = "waiting for the evaluations of the last policy"
        while self._look_after() and not evaluator.has_ended:
            if time.monotonic() > deadline:
                self._note(f"evaluations of the last policy are left out after {_EVALUATION_SECONDS:g} s")
                return
            self._stop.wait(_LOOP_SECONDS)

    def _is_served(self, policy: PolicyAnnouncement, run_log: RunLog) -> bool:
        """Waits until the generator serves a policy; False when it refuses it, is gone or takes too long."""
        generator, deadline = self._services.generators[0], time.monotonic() + _LAST_POLICY_SECONDS
        while self._look_after() and time.monotonic() < deadline and not generator.has_ended:
            if self._generator_status[0].get("policy_step") == policy.step:
                return True
            if any((bad.step, bad.fence) == (policy.step, policy.fence) for bad in run_log.policies.bad()):
                return False
            self._stop.wait(_LOOP_SECONDS)
        return False

    def _look_after(self) -> bool:
        """For those who wait for something: once more, unless a person stops the run (False)."""
        if not self._stop.is_set:
            for text in self._services.check():
                self._note(text)
            self._poll()
        return not self._stop.is_set

    def _poll(self) -> None:
        """Asks everyone how it goes, and shows it."""
        if self._services.learner.is_running:
            self._status = self._learner_http.get("/v1/status") or self._status
        new_rows = (
            self._history.read(self._learner_http, fence=self._status.get("fence")) if self._status else []
        )
        if self._services.learner.is_running:
            step = max(int(self._status.get("step") or 0), max(self._history.rows, default=0))
            if step > self._step:
                self._services.note_progress(self._services.learner)
            self._step = step
            num_appended = int(self._status.get("appended") or 0)
            if num_appended > self._num_appended:
                self._num_appended = num_appended
                self._services.note_groups()
            self._warn(self._services.learner, self._status)
        for number, http in enumerate(self._generator_http):
            service = self._services.generators[number]
            status = self._generator_status[number] = (service.is_running and http.get("/v1/status")) or {}
            self._generator_totals.note(service.name, service.num_restarts, status)
            self._warn(service, status)
            if status.get("groups_appended"):
                self._services.note_progress(service)
        evaluator = self._services.evaluator
        if evaluator is not None and self._evaluator_http is not None and evaluator.is_running:
            self._warn(evaluator, self._evaluator_http.get("/v1/status") or {})
        self._view.update(self._snapshot(), new_rows)

    def _snapshot(self) -> Snapshot:
        return Snapshot(
            run=self._directory.path.name,
            phase=self._phase,
            elapsed_seconds=time.monotonic() - self._started_at,
            page_url=self._plan.page_url,
            status={**self._status, "generators": [each for each in self._generator_status if each]},
            rows=self._history.in_order,
            processes=[(service.name, service.state) for service in self._services],
            memory_bytes=self._memory.newest_bytes,
            warnings=self._warnings.lines,
        )

    def _totals(self, earlier: Totals) -> Totals:
        return earlier.plus(
            wall_seconds=time.monotonic() - self._started_at,
            peak_memory_bytes=self._memory.peak_bytes,
            memory_kind=self._memory.kind,
            reloads=int(self._generator_totals.total("reloads")),
            reload_pause_seconds=self._generator_totals.total("reload_pause_seconds"),
            probe_failures=int(self._generator_totals.total("probe_failures")),
            requests_lost=int(self._generator_totals.total("requests_lost")),
            restarts=sum(service.num_restarts for service in self._services),
        )

    def _warn(self, service: Service, status: Mapping[str, Any]) -> None:
        for line in self._warnings.note(service.name, service.num_restarts, status.get("warnings") or ()):
            self._note(line)

    def notify_end(self, stop: StopSignal) -> list[str]:
        """For when all is written that who is notified may read; sentences about failures."""
        problems = self._notify(*self._ending, stop) if self._ending else []
        for problem in problems:
            write_event(self._directory.path, problem)
        return problems

    def _notify(self, event: str, text: str, stop: StopSignal) -> list[str]:
        section, path = self._plan.file.run, self._directory.path
        message = {"run": path.name, "event": event, "text": text, "step": self._step, "directory": str(path)}
        return notify(command=section.notify_command, url=section.notify_url, message=message, stop=stop)

    def _note(self, text: str) -> None:
        log.info("%s", text)
        write_event(self._directory.path, text)
        self._view.note(text)

    def _say_how_it_ended(self, *, is_finished: bool, failure: AsympoError | None) -> None:
        if failure is not None:
            event, text = "failed", f"failed at step {self._step}: {failure}"
        elif is_finished:
            event, text = "finished", f"finished at step {self._step}"
        else:
            event = "stopped"
            text = f"stopped at step {self._step} by {self._stop.reason or 'its learner'}"
        log.info("The run %s", text)
        write_event(self._directory.path, text, kind="end")
        self._ending = event, text

    def _guard(self) -> Guard:
        plan, place = self._plan, self._directory
        broker_url = plan.broker_url if plan.is_broker_embedded else None
        return Guard(directory=place.path, broker_url=broker_url, lock=place.lock, lock_path=place.lock_path)

    def _drain_seconds(self, service: Service) -> float:
        section = self._plan.file.run
        is_learner = service is self._services.learner
        return section.learner_drain_seconds if is_learner else section.generator_drain_seconds
