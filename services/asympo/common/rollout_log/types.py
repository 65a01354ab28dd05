"""What the rollout log hands out and takes back. Times are Redis server time in seconds since 1970."""

import hashlib
from dataclasses import dataclass
from enum import StrEnum


class RunState(StrEnum):
    """Where a run is in its life; only finished and failed end it."""

    CREATED = "created"
    RUNNING = "running"
    DRAINING = "draining"
    FINISHED = "finished"
    FAILED = "failed"


class RefusalReason(StrEnum):
    """Why no lease was granted."""

    NO_CAPACITY = "no_capacity"
    """As many groups as allowed are leased or open; a freed slot wakes the asker."""
    RUN_ENDED = "run_ended"
    """The run is finished or failed; stop asking."""
    NOT_STARTED = "not_started"
    """No learner has started the run, or it has announced no policy yet."""
    STALE_POLICY = "stale_policy"
    """The asker serves a policy too old for this run; an announcement wakes it."""
    PAUSED = "paused"
    """The run is draining: finish what is held, take nothing new."""
    NO_PROMPTS = "no_prompts"
    """Every prompt of the last epoch is out or answered; one that comes back wakes the asker."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lease:
    """The right to generate one group; ended by append, hand back or expiry."""

    group_id: str
    """"<epoch>-<index>"."""
    epoch: int
    """Pass over the prompts, from 0."""
    index: int
    """Prompt index in the task, permutation already applied."""
    token: str
    """Random secret that proves the lease."""
    expires_in_seconds: float
    """Time left when it was granted; renew at a third of it."""
    policy_step: int
    """Policy its holder said it serves."""
    is_apart: bool = False
    """Whether the run is of a release that finds payloads beside the log."""
    total_steps: int = 0
    """That the run makes; 0 if its learner was given none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Refused:
    """No lease now."""

    reason: RefusalReason
    """Why."""
    retry_after_seconds: float
    """Ask again after this long even if no event came."""
    wake_id: str
    """Newest event at the time of refusal; `wait_for_slot` blocks for the next."""
    policy_id: str
    """Newest announcement at that time; who was refused for want of a policy waits for the next as well."""


class AppendOutcome(StrEnum):
    """What became of a group."""

    APPENDED = "appended"
    TOO_LARGE = "too_large"
    """The record is larger than any of this run may be; nothing is written and the lease goes on."""
    DUPLICATE = "duplicate"
    """A retry of an append that had succeeded; nothing written again."""
    LEASE_LOST = "lease_lost"
    """The lease had expired or was taken back; the group is wasted."""
    TOO_STALE = "too_stale"
    """Older than max_generation_staleness; the prompt is issued again."""
    REFUSED = "refused"
    """The run is finished or failed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AppendResult:
    """Answer to one append."""

    outcome: AppendOutcome
    """What became of the group."""
    sequence: int | None
    """Number of its entry; None unless appended or duplicate."""
    generation_staleness: int
    """Policies published between lease and append; 0 unless appended or too stale."""
    generation_staleness_steps: int
    """The same in optimizer steps."""
    no_slot: Refused | None = None
    """What a request for the next prompt would have been told; None if a slot was free then."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LogEntry:
    """One group as it lies in the log, payload not decoded."""

    sequence: int
    """Dense number, from 1."""
    group_id: str
    """As leased; the payload's own id is checked against it by the reader of the payload."""
    producer: str
    """Who appended it."""
    payload: bytes
    """Encoded RolloutGroup."""
    entry_id: str
    """Redis stream id."""
    appended_at_seconds: float
    """When."""
    problem: str = ""
    """Why this is no group, whatever its payload says; empty for what the append script wrote."""

    @property
    def payload_digest(self) -> str:
        """Tells entries apart that a broker had under one number, before and after it went back in time."""
        return hashlib.sha256(self.payload).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class DeadLetter:
    """A record that failed validation, kept for a person to look at."""

    letter_id: str
    """What the broker knows it by."""
    sequence: int
    """Its number in the log."""
    group_id: str
    """As leased."""
    producer: str
    """Who appended it."""
    reason: str
    """One sentence."""
    payload: bytes
    """As received."""
    at_seconds: float
    """When it was set aside."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fence:
    """Ownership of a run by one learner."""

    number: int
    """Grows with every owner; part of every checkpoint's name."""
    token: str
    """Random secret checked by every learner script."""
    holder: str
    """Who, for people."""
    heartbeat_seconds: float
    """Another learner may start when no heartbeat came for this long; beat every third of it."""
    server_id: str
    """Broker process and history this fence was checked against; a different one asks for a reconcile.

    Empty when it was taken on a broker that had lost the run.
    """
    run_id: str = ""
    """Of the run that it was taken in: one of the same name may be created later. Empty in an older run."""
    total_steps: int = 0
    """That this owner will make; 0 if it was given none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CommitRecord:
    """How far the run is durable."""

    sequence: int
    """Last entry covered by the training state."""
    state_name: str
    """Directory of that training state."""
    step: int
    """Optimizer step of that state."""
    fence: int
    """Owner that committed it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReconcileReport:
    """What a reconcile found and repaired."""

    fence: Fence
    """Use this one from now on; its number may have grown."""
    commit: CommitRecord | None
    """The newest of Redis' and the training state's; resume from it."""
    last_sequence: int
    """Newest number that counts as used."""
    lost_sequences: int
    """Numbers below it that the broker lost and readers step over."""
    num_freed: int
    """Covered ids taken out of open, leases and reissue."""
    num_reopened: int
    """Ids in the log, not covered, put back into open."""
    num_reissued: int
    """Prompts that no list knew any more, queued to be issued again."""
    was_rolled_back: bool
    """The broker had lost acknowledged state."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyAnnouncement:
    """A published policy, by step, fence and digest; never a path."""

    step: int
    """Optimizer step of the policy."""
    fence: int
    """Learner that published it."""
    digest: str
    """Digest of its manifest."""
    published_at_seconds: float
    """When it was announced."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BadPolicy:
    """A policy that a generator failed to prove."""

    step: int
    """Its step."""
    fence: int
    """Its fence."""
    reason: str
    """What failed."""
    holder: str
    """Who found out."""
    at_seconds: float
    """When it was reported first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LogStats:
    """Counts of one run at one instant. Counters grow for the life of the run's keys."""

    state: RunState
    """Where the run is in its life."""
    state_reason: str
    """Why, for people."""
    backlog: int
    """Groups appended and not yet trained."""
    open: int
    """Groups whose slot is not freed."""
    leases: int
    """Leases out and not expired."""
    capacity: int
    """Most that leases and open may be together."""
    appended: int
    """Groups appended."""
    trained: int
    """Groups covered by commits."""
    dead_letters: int
    """Records set aside."""
    leases_granted: int
    """Leases given out."""
    lease_expiries: int
    """Leases that ran out."""
    wasted_appends: int
    """Groups refused because their lease was lost or too stale."""
    stale_appends: int
    """Those of them that were too stale."""
    duplicate_appends: int
    """Retries that found their group already there."""
    prompt_failures: int
    """Hand-backs that blamed the prompt."""
    prompts_set_aside: int
    """Prompts given up for their epoch."""
    last_sequence: int
    """Newest number given out."""
    committed_sequence: int
    """Newest number covered by durable state."""
    policies_published: int
    """Distinct policies announced."""
    generation_staleness_policies_total: int
    """Sum over appended groups; divide by `appended` for the mean."""
    generation_staleness_steps_total: int
    """The same in optimizer steps."""
    generation_staleness_max: int
    """Largest seen, in policies."""
    epoch: int
    """Epoch of the prompt cursor."""
    position: int
    """Prompts of that epoch issued so far."""
    reissue: int
    """Prompts waiting to be issued again."""
    is_exhausted: bool
    """No further group can arrive: epochs are used up and no prompt is out."""
    fence: int
    """Number of the newest owner; 0 before the first."""
    fence_holder: str
    """Its name."""
    is_fence_alive: bool
    """Its heartbeat has not expired."""
    server_time_seconds: float
    """Redis' clock at the instant."""
    bytes_used: int
    """Memory of the log stream."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownRun:
    """The run that a training state is of, empty where it does not say."""

    run_id: str = ""
    """Drawn when the run was created."""
    server_id: str = ""
    """Broker that it was on when the state was saved: process and history."""
    config_digest: str = ""
    """Of its settings."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSummary:
    """One line of `asympo runs list`."""

    run: str
    """Its name."""
    state: RunState
    """Where it is in its life."""
    model: str
    """Model it started from."""
    step: int
    """Committed optimizer step."""
    backlog: int
    """Groups appended and not yet trained."""
    trained: int
    """Groups covered by commits."""
