"""Swaps policies in flight, and proves each swap before anything sampled after it may leave."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from asympo.common.checkpoints import Manifest, PolicyRef, PolicyStore, ProbeSequence
from asympo.common.errors import CorruptCheckpoint, EngineBroken, PromptRefused, ReloadFailed
from asympo.engines.base import Readback, ReloadTiming
from asympo.generator.context import GeneratorContext
from asympo.generator.reload.gate import VerdictGate
from asympo.generator.reload.turn import SwapTurns
from asympo.generator.reload.verdict import Judgement, Verdict, check_nll, judge
from asympo.generator.reload.watcher import PolicyWatcher
from asympo.generator.work.inflight import GroupsInFlight

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReloadReport:
    """The newest finished reload, as shown to people."""

    policy: PolicyRef
    verdict: Verdict
    timing: ReloadTiming
    at_seconds: float
    """When the verdict fell, seconds since 1970."""


class Reloader:
    """Owns which policy the engine serves. Only its one task touches the engine's weights."""

    def __init__(
        self,
        *,
        context: GeneratorContext,
        store: PolicyStore,
        watcher: PolicyWatcher,
        gate: VerdictGate,
        groups: GroupsInFlight,
        turns: SwapTurns,
        claim: Callable[[PolicyRef | None], Awaitable[None]],
    ) -> None:
        self._engine = context.engine
        self._gpu = context.gpu
        self._store = store
        self._watcher = watcher
        self._run_log = context.run_log
        self._calls = context.calls
        self._gate = gate
        self._metrics = context.metrics
        self._clock = context.clock
        self._holder = context.holder
        self._groups = groups
        self._claim = claim
        self._turns = turns
        self._probe_timeout_seconds = context.settings.probe_timeout_seconds
        self._max_unproven_reloads = context.settings.max_consistent_reloads
        self._token_noise: float | None = None
        """Of this engine against the learner, measured on the first policy that is accepted."""
        self._num_unproven = 0
        self._num_loads = 0
        self._changed = asyncio.Event()
        self.policy: PolicyRef | None = None
        """The policy served, proven as far as this engine can; None while the engine holds the bare model."""
        self.last_reload: ReloadReport | None = None

    @property
    def served_step(self) -> int | None:
        """Step of the policy served; None before there is one. Weights that never change count as step 0."""
        if not self._engine.can_reload:
            return 0
        return None if self.policy is None else self.policy.step

    @property
    def cache_salt(self) -> str:
        """Keeps cached prompts of different weights apart; a policy loaded twice gets two values."""
        return f"{'model' if self.policy is None else self.policy.name}.{self._num_loads}"

    async def wait_for_change(self, timeout_seconds: float, *, since_step: int | None) -> None:
        """Returns once another policy is served than that of `since_step`, or after the time-out."""
        if self.served_step != since_step:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._changed.wait()

    async def adopt(self, policy: PolicyRef) -> None:
        """Take over the policy the engine was started on, once it reads back; else fall back."""
        if not self._engine.can_reload:
            await self._claim(None)
            return
        self._gate.shut()
        try:
            # Starting takes minutes, in which the copy that was verified before may have been deleted.
            manifest = await self._calls.run(self._store.verify, policy)
        except (CorruptCheckpoint, OSError) as error:
            log.error("Policy %d is gone since the engine started on it: %s", policy.step, error)
            self._watcher.pass_over(policy)
            return
        readback = await self._engine.read_back(policy.path, manifest=manifest)
        judgement = await self._judge(readback, manifest)
        self._metrics.count_judgement(judgement)
        if judgement.is_accepted:
            self._accept(policy, judgement)
            log.info("Started on policy %d: %s", policy.step, judgement, extra={"step": policy.step})
        else:
            await self._fall_back(policy, judgement)
        await self._turns.ended(policy, is_served=self.policy == policy)
        await self._claim(None)

    async def run(self) -> None:
        """Follow the newest policy for ever. Raises EngineBroken when the engine must not go on."""
        if not self._engine.can_reload:
            await asyncio.Event().wait()
        verified: tuple[PolicyRef, Manifest] | None = None
        while True:
            policy = await self._watcher.next_after(self.policy)
            await self._claim(policy)
            try:
                if verified is None or verified[0] != policy:
                    manifest = await self._calls.run(self._store.verify, policy, served=self.policy)
                    verified = (policy, manifest)
            except (CorruptCheckpoint, OSError) as error:
                log.error("Policy %d does not verify and is passed over: %s", policy.step, error)
                self._watcher.pass_over(policy)
                continue
            async with self._gpu.awake() as was_asleep:
                # Not next_after, which may wait for a policy that the learner needs the GPU for.
                if was_asleep and await self._watcher.newest() != policy:
                    continue
                # While others load it there may come a newer one, or it may turn out to be bad.
                if await self._turns.come(policy):
                    async with self._turns.kept(policy):
                        await self._swap(policy, verified[1])
                    await self._turns.ended(policy, is_served=self.policy == policy)
            await self._claim(None)

    async def _swap(self, policy: PolicyRef, manifest: Manifest) -> None:
        judgement = await self._load_and_judge(policy, manifest)
        if judgement.is_accepted:
            self._accept(policy, judgement)
        else:
            await self._fall_back(policy, judgement)

    async def _load_and_judge(self, policy: PolicyRef, manifest: Manifest) -> Judgement:
        """Reload, then judge; the gate is shut from before the first new weight on."""
        started = self._clock.monotonic_seconds()
        self._groups.mark_reload()
        self._num_loads += 1
        self._gate.shut()
        try:
            reloaded = await self._engine.reload(policy.path, manifest=manifest)
        except EngineBroken:
            raise
        except Exception as error:
            # Half of the weights may be in: whatever it was, this engine must not serve again.
            raise EngineBroken(f"reloading policy {policy.step} raised {error!r}") from error
        judgement, timing = await self._judge(reloaded.readback, manifest), reloaded.timing
        self._metrics.count_reload(judgement, timing)
        self._metrics.observe_swap(self._clock.monotonic_seconds() - started)
        self.last_reload = ReloadReport(
            policy=policy,
            verdict=judgement.verdict,
            timing=timing,
            at_seconds=self._clock.now_seconds(),
        )
        log.log(
            logging.INFO if judgement.is_accepted else logging.ERROR,
            "Reloaded policy %d in %.2f s with %d responses in flight: %s",
            *(policy.step, timing.pause_seconds, timing.num_in_flight, judgement),
            extra={"step": policy.step, "verdict": judgement.verdict.value},
        )
        return judgement

    async def _judge(self, readback: Readback, manifest: Manifest) -> Judgement:
        """Weigh what was read back, and ask the engine for the probe's numbers."""
        sequences, measured = [], []
        for sequence in manifest.probe.sequences:
            if (mean_nll := await self._measure(sequence)) is not None:
                sequences.append(sequence)
                measured.append(mean_nll)
        judgement = judge(readback, check_nll(measured, sequences, token_noise=self._token_noise))
        if self._token_noise is None and judgement.is_accepted and judgement.nll is not None:
            self._token_noise = judgement.nll.token_noise
        return judgement

    async def _measure(self, sequence: ProbeSequence) -> float | None:
        """The engine's mean NLL of one sequence, None if too long for it; broken if it does not answer."""
        try:
            async with asyncio.timeout(self._probe_timeout_seconds):
                return await self._engine.mean_nll(
                    sequence.token_ids, num_prompt_tokens=sequence.num_prompt_tokens
                )
        except TimeoutError as error:
            raise EngineBroken(f"a probe got no answer within {self._probe_timeout_seconds:.0f} s") from error
        except PromptRefused as error:
            log.warning("A probe sequence is left out: %s", error)
            return None

    def _accept(self, policy: PolicyRef, judgement: Judgement) -> None:
        self.policy = policy
        self._num_unproven = 0 if judgement.verdict is Verdict.PROVED else self._num_unproven + 1
        is_alert = self._num_unproven >= self._max_unproven_reloads
        self._metrics.unproven_reloads.set(self._num_unproven)
        self._metrics.unproven_alert.set(is_alert)
        self._metrics.policy_step.set(policy.step)
        if is_alert:
            log.warning(
                "%d reloads in a row proved nothing: the policies do not change, or cannot be read back (%s)",
                *(self._num_unproven, judgement),
            )
        self._gate.open()
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _fall_back(self, failed: PolicyRef, judgement: Judgement) -> None:
        """Hand back what was sampled since, return to the last good policy, then tell the fleet.

        The step is marked bad only after the fallback was proven: when that fails as well, the fault is in
        this engine and says nothing of the policy. Raises ReloadFailed then.
        """
        reason = f"policy {failed.step} {judgement}"
        await self._groups.give_up_unproven(reason)
        self._gate.reject()
        good = self.policy or await self._watcher.older_than(failed)
        if good is None:
            raise ReloadFailed(f"{reason}; there is no earlier policy to return to")
        try:
            manifest = await self._calls.run(self._store.verify, good)
        except (CorruptCheckpoint, OSError) as error:
            raise ReloadFailed(
                f"{reason}; policy {good.step} to return to failed verification: {error}"
            ) from error
        again = await self._load_and_judge(good, manifest)
        if not again.is_accepted:
            raise ReloadFailed(f"{reason}; policy {good.step} to return to failed as well: {again}")
        self._accept(good, again)
        await self._mark_bad(failed, reason)

    async def _mark_bad(self, failed: PolicyRef, reason: str) -> None:
        await self._calls.until_answered(
            self._run_log.policies.mark_bad,
            step=failed.step,
            fence=failed.fence,
            reason=reason,
            holder=self._holder,
        )
        log.error("Policy %d is marked bad for all generators: %s", failed.step, reason)
