"""Sessions of agents: one prompt, some sessions, a reward each, and one group at the end."""

import asyncio
import logging
import math
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace

from asympo.common.codec import to_message
from asympo.common.errors import AsympoError, InvalidRecord
from asympo.common.records import (
    MAX_ABS_FUNCTION_VALUE,
    MAX_ABS_REWARD,
    MAX_FUNCTION_VALUES,
    Prompt,
    RolloutGroup,
)
from asympo.common.rollout_log import RunConfig
from asympo.gateway.capture import NotTrainable, Transcript, shared_prompt
from asympo.gateway.core import Answer, Gateway
from asympo.gateway.metrics import GatewayMetrics
from asympo.gateway.producers import Producer
from asympo.gateway.work import Granted, NoWork

log = logging.getLogger(__name__)

MIN_RESPONSES = 2
"""Fewer rewarded sessions than this have no advantage to speak of."""
SUBMIT_SECONDS = 600.0
"""How long a finished group without a lease waits for a slot."""
KEPT_SECONDS = 600.0
"""How long a group that has ended can be asked about, unless others need its room."""
MAX_SESSIONS = 65_536
"""Of one gateway, those that have ended and are kept included."""
_FAILURES = ("not_enough", "invalid", "too_large")
"""Ends that blame a leased prompt: issued again without that, it would end like this without end."""


class SessionRefused(AsympoError):
    """The request is not possible for this session or run."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        """As HTTP says it."""


@dataclass(eq=False, slots=True)
class Session:
    """One agent's try."""

    session_id: str
    """Secret: whoever knows it may use the session."""
    group: "SessionGroup"
    transcript: Transcript = field(default_factory=Transcript)
    """What was said and heard; empty once the group has ended."""
    reward: float | None = None
    functions: Mapping[str, float] = field(default_factory=dict)
    """Parts of the reward, for people."""
    is_closed: bool = False


@dataclass(eq=False, slots=True)
class SessionGroup:
    """The sessions of one prompt."""

    producer: Producer
    work: Granted | None
    """The leased prompt; None for one that the producer brought."""
    deadline: float
    """Of time.monotonic()."""
    sessions: list[Session] = field(default_factory=list)
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when every session is closed by whoever drives it."""
    outcome: str = "open"
    """Then as of any submission, or `not_enough` or `abandoned`."""
    failures: list[str] = field(default_factory=list)
    """Why sessions were left out, by name."""


class Sessions:
    """Every session of this gateway. Belongs to one event loop."""

    def __init__(self, *, gateway: Gateway, metrics: GatewayMetrics, session_seconds: float) -> None:
        self._gateway = gateway
        self._metrics = metrics
        self._session_seconds = session_seconds
        self._sessions: dict[str, Session] = {}
        self._num_open: Counter[str] = Counter()
        """By producer; those that wait for their prompt included."""
        self._ended: dict[SessionGroup, asyncio.TimerHandle] = {}
        """Those that are kept, oldest first, and what will forget them."""
        self._watching: set[asyncio.Task[None]] = set()

    async def start(
        self,
        producer: Producer,
        *,
        is_own_prompt: bool,
        num_sessions: int | None,
        wait_seconds: float,
        has_left: Callable[[], Awaitable[bool]],
    ) -> SessionGroup | NoWork:
        """A group of sessions; for the producer's own prompt nothing is leased before it ends."""
        config = self._gateway.parts.config
        seconds = self._limit_seconds(config)
        size = num_sessions or config.group_size
        if not MIN_RESPONSES <= size <= config.group_size:
            raise SessionRefused(
                400,
                f"num_sessions is {size}: give {MIN_RESPONSES} to {config.group_size}, the run's group_size",
            )
        group = self._reserve(producer, size)
        if not is_own_prompt:
            try:
                found = await self._gateway.get_work(
                    producer, wait_seconds=wait_seconds, policy_step=None, has_left=has_left
                )
            except BaseException:
                self._release(group)
                raise
            if isinstance(found, NoWork):
                self._release(group)
                return found
            group.work = found
        group.deadline = time.monotonic() + seconds
        self._metrics.open_sessions.inc(size)
        watching = asyncio.ensure_future(self._watch(group))
        self._watching.add(watching)
        watching.add_done_callback(self._watching.discard)
        return group

    async def is_over(self) -> bool:
        """Whether the run has ended."""
        return await self._gateway.parts.work.is_over()

    def open_session(self, session_id: str) -> Session:
        """A session that takes requests; raises SessionRefused."""
        session = self.session(session_id)
        if session.is_closed:
            raise SessionRefused(409, "the session is closed")
        return session

    def session(self, session_id: str) -> Session:
        """Any session that is known; raises SessionRefused."""
        session = self._sessions.get(session_id)
        if session is None:
            raise SessionRefused(404, "there is no such session: it has expired, or was opened elsewhere")
        return session

    def set_reward(self, session_id: str, reward: float, *, functions: Mapping[str, float]) -> None:
        """What the session earned; the last word before its end counts. Said again, it changes nothing."""
        if self.session(session_id).is_closed and self.session(session_id).reward == reward:
            return
        session = self.open_session(session_id)
        if not math.isfinite(reward) or abs(reward) > MAX_ABS_REWARD:
            raise SessionRefused(400, f"reward is {reward}: give a finite number up to {MAX_ABS_REWARD:g}")
        are_right = all(
            name.isprintable() and abs(value) <= MAX_ABS_FUNCTION_VALUE for name, value in functions.items()
        )
        if len(functions) > MAX_FUNCTION_VALUES or not are_right:
            raise SessionRefused(
                400,
                f"functions: give at most {MAX_FUNCTION_VALUES}, each a printable name and a finite number "
                f"up to {MAX_ABS_FUNCTION_VALUE:g}",
            )
        session.reward, session.functions = reward, functions

    def end(self, session_id: str) -> SessionGroup:
        """Closes a session; one without a reward counts as failed. Closing it again changes nothing."""
        session = self.session(session_id)
        session.is_closed = True
        if all(each.is_closed for each in session.group.sessions):
            session.group.closed.set()
        return session.group

    async def close(self) -> None:
        """Gives up what is open: leases go back with the gateway's others."""
        for watching in tuple(self._watching):
            watching.cancel()
        if self._watching:
            await asyncio.wait(set(self._watching))

    def _limit_seconds(self, config: RunConfig) -> float:
        if config.max_staleness < 1:
            raise SessionRefused(
                409, "the run has max_staleness 0: a slow session would hold it up; sessions need 1 or more"
            )
        # What is left of the lease is for the append.
        return min(self._session_seconds, 0.9 * config.max_lease_seconds)

    async def _watch(self, group: SessionGroup) -> None:
        """From start to append: keeps the lease, ends at the last close or the deadline."""
        try:
            await self._keep(group)
            if group.outcome == "open":
                group.outcome = await self._finish(group)
        except Exception:
            # The edge of one group: the gateway goes on, and the lease expires.
            log.exception("A group of sessions met an error nobody foresaw")
            group.outcome = "failed"
        for session in group.sessions:
            session.transcript.clear()
        self._num_open[group.producer.name] -= len(group.sessions)
        self._metrics.open_sessions.dec(len(group.sessions))
        self._metrics.count_session_group(group.outcome)
        log.info(
            "%s: group of %d sessions: %s%s",
            *(group.producer.name, len(group.sessions), group.outcome),
            f" ({', '.join(sorted(set(group.failures)))})" if group.failures else "",
        )
        self._ended[group] = asyncio.get_running_loop().call_later(KEPT_SECONDS, self._forget, group)

    async def _keep(self, group: SessionGroup) -> None:
        """Until the sessions are closed, which the deadline or a lost lease does as well."""
        config = self._gateway.parts.config
        try:
            while not group.closed.is_set() and (left := group.deadline - time.monotonic()) > 0:
                await _set_within(group.closed, min(left, config.lease_seconds / 3))
                if not await self._keep_lease(group):
                    break
        finally:
            for session in group.sessions:
                session.is_closed = True

    async def _keep_lease(self, group: SessionGroup) -> bool:
        if group.work is None:
            return True
        token = group.work.lease.token
        try:
            lost = await self._gateway.renew_work(group.producer, keep=[token], hand_back=[])
        except AsympoError as error:
            log.warning("The lease of a session group could not be renewed: %s", error)
            return True
        if lost:
            group.outcome = "lease_lost"
        return not lost

    async def _finish(self, group: SessionGroup) -> str:
        """Writes what the sessions made; how it ended."""
        record = self._record(group)
        if record is None:
            outcome = "not_enough" if group.closed.is_set() else "abandoned"
        else:
            answer = await self._submit(group, record)
            outcome = answer.outcome
            if answer.reason:
                group.failures.append(answer.reason)
        if group.work is not None and outcome in (*_FAILURES, "abandoned"):
            await self._gateway.parts.work.hand_back(
                group.work.lease,
                reason=f"its sessions ended as {outcome}: {group.failures}",
                # Whoever left sessions open may be gone: that says nothing of the prompt.
                is_prompt_failure=outcome != "abandoned",
            )
        return outcome

    async def _submit(self, group: SessionGroup, record: RolloutGroup) -> Answer:
        try:
            message = to_message(record)
        except InvalidRecord as error:
            return self._gateway.refuse(group.producer, record.group_id, str(error))
        token = group.work.lease.token if group.work else ""
        return await self._gateway.submit(
            group.producer, message, lease_token=token, wait_seconds=SUBMIT_SECONDS
        )

    def _record(self, group: SessionGroup) -> RolloutGroup | None:
        """The group; None with fewer than two sessions that can be trained."""
        usable = []
        has_segments = self._gateway.parts.config.has_segments
        for session in group.sessions:
            try:
                if session.reward is None:
                    raise NotTrainable("no_reward", "the session ended without a reward")
                conversation = session.transcript.conversation(has_segments=has_segments)
                usable.append((conversation, session))
            except NotTrainable as error:
                group.failures.append(error.reason)
                self._metrics.count_session(error.reason)
            else:
                self._metrics.count_session("rewarded")
        if len(usable) < MIN_RESPONSES:
            return None
        prompt = shared_prompt([conversation for conversation, _ in usable])
        responses = [
            replace(
                conversation.response(after=len(prompt), reward=session.reward or 0.0),
                function_values=session.functions,
            )
            for conversation, session in usable
        ]
        group_id = (
            group.work.lease.group_id
            if group.work
            else f"{time.time_ns() // 1_000_000}-{secrets.token_hex(6)}"
        )
        return RolloutGroup(group_id=group_id, prompt=Prompt(token_ids=prompt), responses=tuple(responses))

    def _reserve(self, producer: Producer, size: int) -> SessionGroup:
        """A group that nobody knows yet, so that those who wait at the same time find its room taken."""
        self._make_room(producer, size)
        group = SessionGroup(producer=producer, work=None, deadline=math.inf)
        group.sessions += [Session(session_id=secrets.token_hex(16), group=group) for _ in range(size)]
        self._sessions |= {session.session_id: session for session in group.sessions}
        self._num_open[producer.name] += size
        return group

    def _release(self, group: SessionGroup) -> None:
        """A reserved group for which there is no prompt."""
        self._num_open[group.producer.name] -= len(group.sessions)
        self._forget(group)

    def _make_room(self, producer: Producer, size: int) -> None:
        """For so many more sessions; raises SessionRefused where a producer would have more than are left."""
        own, num_open = self._num_open[producer.name], self._num_open.total()
        if own + size > MAX_SESSIONS - num_open:
            raise SessionRefused(
                429,
                f"{num_open} sessions are open, of {MAX_SESSIONS} at most, {own} of them of {producer.name}, "
                "which may have no more than it leaves to others: close some first",
            )
        while len(self._sessions) + size > MAX_SESSIONS:
            self._forget(next(iter(self._ended)))

    def _forget(self, group: SessionGroup) -> None:
        timer = self._ended.pop(group, None)
        if timer is not None:
            timer.cancel()
        for session in group.sessions:
            self._sessions.pop(session.session_id, None)


async def _set_within(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
