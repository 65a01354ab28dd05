"""What every part of a run must agree on, written once by the learner."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from asympo.common.errors import BadSetting, RunConfigMismatch
from asympo.common.foreign.documents import parse_object
from asympo.common.names import check_run_name
from asympo.common.records import MAX_PAYLOAD_BYTES, MAX_RESPONSE_TOKENS
from asympo.common.versions import Format

SCHEMA = Format(name="schema_version", newest=2, oldest=1)
"""Of the records and of this config. Since 2, responses may have segments."""
SCRIPTS = Format(name="script_version", newest=3, oldest=2)
"""Of the protocol that the Lua scripts speak on a run's keys. A run keeps the numbers it was created with, as
scripts of two releases work on its keys at the same time while one replaces the other."""
_FORMATS = (SCHEMA, SCRIPTS)
_MAX_CONFIG_BYTES = 2**20
_PROMPT_BYTES, _RESPONSE_BYTES = 2 * 2**20, 4096
_TOKEN_BYTES, _BARE_TOKEN_BYTES = 32, 4
"""Of one token with its text, and of its id and mask alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """Settings of a run. Times in seconds, staleness in published policies.

    The default of a setting that is new must mean what builds did that did not have it.
    """

    run: str
    """Name of the run; part of every key and of the checkpoint path."""
    group_size: int
    """G, responses per prompt."""
    groups_per_step: int
    """Groups with signal that end a segment."""
    max_groups_per_step: int
    """Groups of any kind that end a segment."""
    publish_every: int = 1
    """Optimizer steps between two published policies."""
    save_every: int = 10
    """Optimizer steps between two commits of durable state."""
    max_staleness: int = 1
    """Queue staleness that capacity allows; 0 is synchronous."""
    max_generation_staleness: int | None = None
    """Policies a holder may be behind when it appends; None leaves only `max_lease_seconds`."""
    lease_seconds: float = 15.0
    """A lease that is not renewed for this long is given to someone else."""
    max_lease_seconds: float = 900.0
    """A lease ends after this long, renewed or not."""
    max_prompt_failures: int = 3
    """Failures of the prompt itself (not of its holders) after which it is set aside for the epoch."""
    seed: int = 0
    """Seed of the order of prompts."""
    num_prompts: int
    """Trainable prompts of the task."""
    num_epochs: int = 0
    """Passes over the prompts; 0 is endless."""
    model: str
    """Hugging Face id or path of the starting model."""
    task: Mapping[str, Any] = field(default_factory=dict)
    """Dump of the task's settings."""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """temperature, top_p, max_tokens, stop, and optionally min_tokens."""
    overlong_reward: float | None = None
    """Reward of a truncated response; None scores it like any other."""
    task_digest: str = ""
    """sha256 over the task's content and settings."""
    tokenizer_digest: str = ""
    """sha256 over tokenizer and chat template."""
    schema_version: int = SCHEMA.newest
    """See the constant."""
    script_version: int = SCRIPTS.newest
    """See the constant."""

    def __post_init__(self) -> None:
        check_run_name(self.run)
        minima = {
            "group_size": 2,
            "groups_per_step": 1,
            "max_groups_per_step": self.groups_per_step,
            "publish_every": 1,
            "save_every": 1,
            "max_staleness": 0,
            "max_prompt_failures": 1,
            "num_prompts": 1,
            "num_epochs": 0,
        }
        for name, minimum in minima.items():
            if getattr(self, name) < minimum:
                raise BadSetting(f"{name} is {getattr(self, name)}: give {minimum} or more")
        if self.num_prompts > 2**32:
            raise BadSetting(f"num_prompts is {self.num_prompts}: give at most {2**32}")
        if not 0 < self.lease_seconds <= self.max_lease_seconds:
            raise BadSetting(
                f"lease_seconds is {self.lease_seconds}: give more than 0 and at most "
                f"max_lease_seconds ({self.max_lease_seconds})"
            )
        if self.max_generation_staleness is not None and self.max_generation_staleness < 0:
            raise BadSetting(
                f"max_generation_staleness is {self.max_generation_staleness}: give 0 or more, or none"
            )

    @property
    def capacity(self) -> int:
        """Groups that may be leased or open at once; bounds queue staleness by construction."""
        return (1 + self.max_staleness) * self.publish_every * self.groups_per_step

    @property
    def has_segments(self) -> bool:
        """Whether every learner that may train the run knows responses of several segments."""
        return self.schema_version >= 2

    @property
    def max_record_bytes(self) -> int:
        """Of one record: a prompt, and `group_size` responses of `max_tokens` with ids, mask and text.

        An agent's response, of many turns, may have MAX_RESPONSE_TOKENS; its ids come without text.
        """
        max_tokens = self.sampling.get("max_tokens")
        tokens = max_tokens if isinstance(max_tokens, int) else 0
        if tokens <= 0:
            return MAX_PAYLOAD_BYTES
        longest = max(tokens * _TOKEN_BYTES, MAX_RESPONSE_TOKENS * _BARE_TOKEN_BYTES)
        return min(MAX_PAYLOAD_BYTES, _PROMPT_BYTES + self.group_size * (_RESPONSE_BYTES + longest))

    def planned_steps(self, total_steps: int) -> int:
        """Steps of the whole run; 0 if it has no end."""
        return planned_steps(
            total_steps,
            num_epochs=self.num_epochs,
            num_prompts=self.num_prompts,
            groups_per_step=self.groups_per_step,
        )

    def check_size(self) -> None:
        """Raises BadSetting for one that nobody would read."""
        num_bytes, num_left_out = len(self.to_json().encode()), len(self.task.get("left_out") or ())
        if num_bytes <= _MAX_CONFIG_BYTES:
            return
        cure = "give the task shorter options"
        if num_left_out:
            cure = (
                f"{num_left_out} prompts are too long and listed in it, so take them out of the data, or use "
                "a model with a longer context"
            )
        raise BadSetting(
            f"the config of run {self.run} has {num_bytes} bytes, and at most {_MAX_CONFIG_BYTES} are read: "
            f"{cure}"
        )

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> "RunConfig":
        """Raises UnknownVersion and RunConfigMismatch when this build cannot keep to what `text` says.

        Unlike elsewhere unknown settings are refused: everybody in a run must do what they say.
        """
        try:
            fields = parse_object(text, max_bytes=_MAX_CONFIG_BYTES)
        except ValueError as error:
            raise RunConfigMismatch(
                f"the config of a run is damaged ({error}): restore or delete it"
            ) from None
        for known in _FORMATS:
            known.check(fields.get(known.name), what=f"run {fields.get('run')!r}")
        unknown = set(fields) - {item.name for item in dataclasses.fields(cls)}
        if unknown:
            raise RunConfigMismatch(
                f"run {fields.get('run')!r} has settings this build does not know: {sorted(unknown)}; a "
                "newer release created it, upgrade this one"
            )
        try:
            return cls(**fields)
        except TypeError as error:
            raise RunConfigMismatch(
                f"the config of run {fields.get('run')!r} is damaged ({error}): restore or delete it"
            ) from None

    def differences(self, stored: "RunConfig") -> list[str]:
        """One "name: given X, stored Y" for each setting that differs from `stored`; versions are none."""
        given, kept = self._settings(), stored._settings()
        return [
            f"{name}: given {given[name]!r}, stored {kept[name]!r}"
            for name in sorted(given)
            if given[name] != kept[name]
        ]

    @property
    def digest(self) -> str:
        """Of all settings as this release knows them: equal ones have no `differences`."""
        return hashlib.sha256(json.dumps(self._settings(), sort_keys=True).encode()).hexdigest()

    def _settings(self) -> dict[str, Any]:
        fields: dict[str, Any] = json.loads(self.to_json())
        return {name: value for name, value in fields.items() if name not in {each.name for each in _FORMATS}}


def planned_steps(total_steps: int | None, *, num_epochs: int, num_prompts: int, groups_per_step: int) -> int:
    """Those given, else what the epochs make if every group has signal; 0 for a run without end."""
    return total_steps or -(-num_epochs * num_prompts // groups_per_step)
