"""Leases prompts and keeps a number of groups in flight until told to drain."""

import asyncio
import logging
import time
from typing import Any
from uuid import uuid4

from asympo.common.errors import BrokerUnavailable, EngineBroken, RunConfigMismatch
from asympo.common.rollout_log import Lease, RefusalReason, Refused, RunState
from asympo.generator.context import GeneratorContext
from asympo.generator.reload.gate import VerdictGate
from asympo.generator.reload.reloader import Reloader
from asympo.generator.work.group import EngineFailed, GroupMaker, PromptFailed
from asympo.generator.work.inflight import GroupInFlight, GroupsInFlight, GroupStopped, StopReason

log = logging.getLogger(__name__)

HAND_BACK_SECONDS = 5.0
"""How long a drain waits for the broker to take back what is left at its deadline."""
PATIENT_FAILURES = 4
"""So many prompts in a row may fail before leasing slows down: single prompts are bad now and then."""
FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 0.5, 30.0
MISSING_SECONDS = 300.0
"""For which a run may be gone: a broker that lost it gets it again from a learner that ends its step."""


class Worker:
    """The generator's main loop. Belongs to one event loop."""

    def __init__(
        self,
        *,
        context: GeneratorContext,
        maker: GroupMaker,
        reloader: Reloader,
        gate: VerdictGate,
        groups: GroupsInFlight,
        leases: bool = True,
    ) -> None:
        """Without `leases` it asks for no prompts: others do, and ask the policy through the door."""
        self._leases = leases
        settings = context.settings
        self._config = context.config
        self._run_log = context.run_log
        self._maker = maker
        self._engine = context.engine
        self._reloader = reloader
        self._gate = gate
        self._groups = groups
        self._calls = context.calls
        self._metrics = context.metrics
        self._tracing = context.tracing
        self._holder = context.holder
        self._max_engine_failures = settings.max_engine_failures
        self._slot_wait_seconds = settings.slot_wait_seconds
        self._exit_when_run_ends = settings.exit_when_run_ends
        self._free = asyncio.Semaphore(settings.max_groups_in_flight)
        context.metrics.max_groups_in_flight.set(settings.max_groups_in_flight if leases else 0)
        self._num_failures_in_row = 0
        self._num_fruitless, self._pause_seconds, self._lease_after = 0, 0.0, 0.0
        self._asking: asyncio.Future[Lease | Refused] | None = None
        self._no_slot: Refused | None = None
        """What the last append was told of the next lease: then nobody needs to ask."""
        self._broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._broken.add_done_callback(lambda future: future.cancelled() or future.exception())
        self._unpaused = asyncio.Event()
        self._unpaused.set()
        self._drain = asyncio.Event()
        self._run_id = context.run_id
        """Of the run that we joined; of an earlier version it has none."""
        self._missing_since: float | None = None
        self.refusal: RefusalReason | None = RefusalReason.NOT_STARTED if leases else None
        """Why the broker last gave no work; None after it gave some."""

    @property
    def is_paused(self) -> bool:
        return not self._unpaused.is_set()

    @property
    def is_draining(self) -> bool:
        return self._drain.is_set()

    def pause(self) -> None:
        """Lease nothing more; groups in flight go on. Idempotent."""
        self._unpaused.clear()

    def resume(self) -> None:
        """Lease again. Idempotent."""
        self._unpaused.set()

    async def run(self) -> None:
        """Lease, answer and renew until drained, or until the run ends where that was asked for.

        Raises EngineBroken when the engine must not go on, BrokerRefused when the broker rejects us.
        """
        renewing = asyncio.ensure_future(self._renew_leases())
        leasing = asyncio.ensure_future(self._lease_groups())
        draining = asyncio.ensure_future(self._drain.wait())
        try:
            ends: set[asyncio.Future[Any]] = {renewing, leasing, draining, self._broken}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for ended in (renewing, leasing, self._broken):
                if ended.done():
                    ended.result()
        finally:
            for task in (renewing, leasing, draining):
                task.cancel()

    async def drain(self, *, deadline_seconds: float) -> tuple[int, int]:
        """Stop leasing, finish or hand back what is in flight; (groups appended, groups handed back) since.

        Groups that are not done at the deadline are handed back. A second call waits as well, and a shorter
        deadline of its wins.
        """
        tally = self._metrics.tally
        before = tally.groups_appended, tally.groups_handed_back
        self._drain.set()
        log.info("Draining %d groups within %.0f s", len(self._groups), deadline_seconds)
        renewing = asyncio.ensure_future(self._renew_leases())
        try:
            await self._groups.settled(tuple(self._groups), timeout_seconds=deadline_seconds)
            # At once: a broker that stands still costs the end of the process one such wait.
            await asyncio.gather(
                self._groups.stop(tuple(self._groups), StopReason.DRAIN, timeout_seconds=HAND_BACK_SECONDS),
                self._return_unwanted(),
            )
        finally:
            renewing.cancel()
        return tally.groups_appended - before[0], tally.groups_handed_back - before[1]

    # --- leasing ---------------------------------------------------------------------------------------

    async def _lease_groups(self) -> None:
        while True:
            await self._free.acquire()
            await asyncio.sleep(max(0.0, self._lease_after - time.monotonic()))
            wanted_at_ns = time.time_ns()
            try:
                lease = await self._next_lease()
            except BaseException:
                self._free.release()
                raise
            if lease is None:
                self._free.release()
                return
            group = GroupInFlight(
                lease=lease,
                # The same prompt may come back to us: a request of its first lease may still be ending.
                request_id=f"{lease.group_id}.{uuid4().hex[:8]}",
                num_samples=self._config.group_size,
                wanted_at_ns=wanted_at_ns,
            )
            self._tracing.record(
                *(lease.group_id, "lease"),
                begun_ns=wanted_at_ns,
                ended_ns=time.time_ns(),
                attributes={"asympo.policy_step": lease.policy_step},
            )
            self._groups.add(group, asyncio.ensure_future(self._work(group)))

    async def _next_lease(self) -> Lease | None:
        """Wait until a lease is granted; None once the run has ended and that is to end the process."""
        if not self._leases:
            await self._until_run_ends()
            return None
        wanted_since = time.monotonic()
        while True:
            await self._until_unpaused()
            await self._gate.opened()
            step = self._reloader.served_step
            if step is None:
                await self._reloader.wait_for_change(self._slot_wait_seconds, since_step=None)
                await self._refuse_another_run()
                continue
            answer: Lease | Refused
            if self._no_slot is not None:
                answer, self._no_slot = self._no_slot, None
            else:
                answer = await self._ask_for_lease(step)
            if isinstance(answer, Lease):
                self.refusal, self._missing_since = None, None
                self._metrics.lease_wait_seconds.observe(time.monotonic() - wanted_since)
                return answer
            if answer.reason is not self.refusal:
                log.info("No work for now: %s", answer.reason.value)
            self.refusal = answer.reason
            if answer.reason is RefusalReason.RUN_ENDED and self._exit_when_run_ends:
                return None
            if answer.reason is RefusalReason.NOT_STARTED:
                await self._refuse_another_run()
            else:
                self._missing_since = None
            await self._wait_after(answer, asked_step=step)

    async def _until_unpaused(self) -> None:
        while not self._unpaused.is_set():
            try:
                async with asyncio.timeout(self._slot_wait_seconds):
                    await self._unpaused.wait()
            except TimeoutError:
                await self._refuse_another_run()

    async def _until_run_ends(self) -> None:
        """While others ask for prompts: returns once the run has ended and that is to end the process."""
        while True:
            state = await self._calls.until_answered(self._run_log.state.get)
            has_ended = state in (RunState.FINISHED, RunState.FAILED)
            self.refusal = RefusalReason.RUN_ENDED if has_ended else None
            if has_ended and self._exit_when_run_ends:
                return
            await self._refuse_another_run()
            served = self._reloader.served_step
            await self._reloader.wait_for_change(self._slot_wait_seconds, since_step=served)

    async def _ask_for_lease(self, policy_step: int) -> Lease | Refused:
        """One request for work. A drain does not cancel it: a lease it brings must be handed back."""
        self._asking = asyncio.ensure_future(
            self._calls.until_answered(
                self._run_log.leases.acquire,
                holder=self._holder,
                policy_step=policy_step,
                run_id=self._run_id,
            )
        )
        answer = await asyncio.shield(self._asking)
        self._asking = None
        return answer

    async def _refuse_another_run(self) -> None:
        """Raises RunConfigMismatch once the run of our config is another one, or gone for long.

        A broker that lost it gets it again from its learner, under the same id, when that ends its step. Of a
        run without one only the policy that its learner announces again tells that it is back.
        """
        # In this order: one that is deleted in between is not taken for one that was created anew.
        run_id = await self._calls.until_answered(self._run_log.state.run_id)
        announced = await self._calls.until_answered(self._run_log.policies.latest)
        config = await self._calls.until_answered(self._run_log.state.config)
        is_not_ours = bool(self._run_id and run_id) and run_id != self._run_id
        if config is not None and (config != self._config or is_not_ours):
            raise self._gone("deleted and created anew")
        # A learner that creates its run again writes the id with it, and announces its policy after that.
        is_there = bool(run_id) if self._run_id else announced is not None or not self._has_policy
        if config is not None and is_there:
            self._missing_since = None
            self._run_id = self._run_id or run_id
            return
        if self._missing_since is None:
            self._missing_since = time.monotonic()
            log.warning("The broker has no run %s: waiting for its learner", self._config.run)
        if time.monotonic() - self._missing_since >= MISSING_SECONDS:
            raise self._gone("deleted")

    @property
    def _has_policy(self) -> bool:
        return self._reloader.policy is not None

    def _gone(self, what: str) -> RunConfigMismatch:
        return RunConfigMismatch(
            f"run {self._config.run!r} was {what} since this generator joined it: start it again"
        )

    async def _return_unwanted(self) -> None:
        """Hand back the lease that was being granted when leasing stopped."""
        if self._asking is None:
            return
        try:
            async with asyncio.timeout(HAND_BACK_SECONDS):
                answer = await self._asking
        except TimeoutError:
            log.warning("The broker is away: a lease that it may have granted will expire")
            return
        if isinstance(answer, Lease):
            await self._hand_back(answer, reason=StopReason.DRAIN)

    async def _wait_after(self, refused: Refused, *, asked_step: int) -> None:
        """Block until it makes sense to ask again; never longer than an event that was missed may cost."""
        reason, hint_seconds = refused.reason, refused.retry_after_seconds
        if reason is RefusalReason.STALE_POLICY:
            limit_seconds = max(hint_seconds, self._slot_wait_seconds)
            await self._reloader.wait_for_change(limit_seconds, since_step=asked_step)
            return
        try:
            await self._calls.run(
                self._run_log.leases.wait_for_slot, self._slot_wait_seconds, refused=refused
            )
        except BrokerUnavailable as error:
            self._metrics.count_broker_error()
            log.warning("No news of free slots while the broker is away: %s", error)

    async def _renew_leases(self) -> None:
        """Keep our leases alive, also those of groups that only wait to be appended."""
        while True:
            await asyncio.sleep(self._config.lease_seconds / 3)
            by_token = {group.lease.token: group for group in self._groups}
            if not by_token:
                continue
            try:
                leases = [group.lease for group in by_token.values()]
                lost = await self._calls.run(self._run_log.leases.renew, leases)
            except BrokerUnavailable as error:
                self._metrics.count_broker_error()
                log.warning("%d leases could not be renewed: %s", len(by_token), error)
                continue
            for lease in lost:
                group = by_token[lease.token]
                # One that was appended while we asked is gone as well, and rightly so.
                if group in self._groups:
                    group.stop(StopReason.LEASE_LOST)

    # --- one group -------------------------------------------------------------------------------------

    async def _work(self, group: GroupInFlight) -> None:
        try:
            await self._settle(group)
        except Exception as error:  # noqa: BLE001  ends the worker: a lease could not be settled
            if not self._broken.done():
                self._broken.set_exception(error)
        finally:
            self._no_slot = group.no_slot
            self._groups.discard(group)
            self._free.release()

    async def _settle(self, group: GroupInFlight) -> None:
        """Answer one group and settle its lease, whatever happens. Raises EngineBroken only."""
        try:
            outcome = await self._maker.answer(group)
        except GroupStopped:
            await self._settle_stopped(group)
        except PromptFailed as failure:
            log.warning("Group %s: %s", group.lease.group_id, failure)
            self._slow_down()
            await self._hand_back(group.lease, reason=str(failure), is_prompt_failure=True)
        except EngineFailed as failure:
            await self._settle_engine_failure(group, failure)
        except EngineBroken as error:
            await self._hand_back(group.lease, reason=f"engine broken: {error}")
            raise
        except Exception as error:
            # The edge of one group: it must not take the others along.
            log.exception("Group %s met an error nobody foresaw", group.lease.group_id)
            self._metrics.count_unexpected_error()
            await self._hand_back(group.lease, reason=repr(error), is_prompt_failure=True)
        else:
            self._num_failures_in_row = 0
            self._num_fruitless, self._pause_seconds = 0, 0.0
            self._metrics.count_group(outcome)
            if outcome == "appended":
                # Last and once: what others did for a group that was leased twice hangs below it as well.
                self._tracing.record(
                    *(group.lease.group_id, "group"),
                    begun_ns=group.wanted_at_ns,
                    ended_ns=time.time_ns(),
                    is_root=True,
                )

    def _slow_down(self) -> None:
        """Where every prompt fails, asking for the next at once only heats the machine."""
        self._num_fruitless += 1
        now = time.monotonic()
        if self._num_fruitless < PATIENT_FAILURES or now < self._lease_after:
            return
        self._pause_seconds = min(MAX_PAUSE_SECONDS, max(FIRST_PAUSE_SECONDS, 2 * self._pause_seconds))
        self._lease_after = now + self._pause_seconds
        log.warning(
            "%d prompts in a row failed: the next is asked for in %.1f s",
            *(self._num_fruitless, self._pause_seconds),
        )

    async def _settle_stopped(self, group: GroupInFlight) -> None:
        if group.stop_reason is StopReason.LEASE_LOST:
            log.warning("The lease of group %s was lost; its work is wasted", group.lease.group_id)
            self._metrics.count_lease_lost()
            self._metrics.count_group("lease_lost")
        else:
            await self._hand_back(group.lease, reason=str(group.stop_reason))

    async def _settle_engine_failure(self, group: GroupInFlight, failure: EngineFailed) -> None:
        """The first failure is charged to the prompt, those right after it to the engine."""
        self._metrics.count_engine_failure()
        self._num_failures_in_row += 1
        log.error("Group %s: %s", group.lease.group_id, failure, exc_info=failure.__cause__)
        num_failures = self._num_failures_in_row
        await self._hand_back(group.lease, reason=str(failure), is_prompt_failure=num_failures == 1)
        if self._engine.is_broken or num_failures >= self._max_engine_failures:
            raise EngineBroken(f"{num_failures} generations in a row failed, the last: {failure}")

    async def _hand_back(self, lease: Lease, *, reason: str, is_prompt_failure: bool = False) -> None:
        """Give the prompt to someone else now; if the broker is away, the lease's expiry does it."""
        try:
            await self._calls.run(
                self._run_log.leases.hand_back, lease, reason=reason, is_prompt_failure=is_prompt_failure
            )
        except BrokerUnavailable as error:
            self._metrics.count_broker_error()
            log.warning("Group %s was not handed back and will expire: %s", lease.group_id, error)
        self._metrics.count_group("prompt_failed" if is_prompt_failure else "handed_back")
