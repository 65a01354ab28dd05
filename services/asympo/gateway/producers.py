"""Who may use the gateway, and for what."""

import hashlib
import hmac
import time
from enum import StrEnum
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from asympo.common.errors import AsympoError, BadSetting
from asympo.common.rollout_log import PRODUCER_NAME
from asympo.common.settings import read_toml, validate

LOCAL = "local"
"""Name of the one producer where none are listed."""


class NotAllowed(AsympoError):
    """The caller has no valid token, or not for this."""

    def __init__(self, message: str, *, is_known: bool) -> None:
        super().__init__(message)
        self.is_known = is_known
        """Whether the token is valid, and only does not reach so far."""


class Scope(StrEnum):
    """What a token is good for."""

    SUBMIT = "submit"
    """Append groups."""
    WORK = "work"
    """Lease prompts of the run's task."""
    SESSIONS = "sessions"
    """Open sessions for agents and reward them."""
    WATCH = "watch"
    """Follow the run's policies."""


class Producer(BaseModel):
    """One entry of the file of producers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=PRODUCER_NAME, description="stands beside each of its groups in the log")
    token: str = Field(default="", repr=False, description="secret that callers show, 16 characters or more")
    token_sha256: str = Field(
        default="", pattern=r"^([0-9a-f]{64})?$", description="SHA-256 of the token, instead of the token"
    )
    scopes: frozenset[Scope] = Field(
        default=frozenset(Scope), description="what it may do; everything if not given"
    )
    share: float = Field(
        default=1.0, gt=0.0, le=1.0, description="share of the run's slots for groups without a lease"
    )
    groups_per_minute: float | None = Field(
        default=None, gt=0.0, description="how many groups without a lease it may submit"
    )

    @model_validator(mode="after")
    def _has_one_token(self) -> Self:
        if bool(self.token) == bool(self.token_sha256):
            raise ValueError(f"producer {self.name}: give either token or token_sha256")
        if self.token and len(self.token) < 16:
            raise ValueError(f"producer {self.name}: its token is too short, give 16 characters or more")
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of the token."""
        return self.token_sha256 or hashlib.sha256(self.token.encode()).hexdigest()

    def max_slots(self, capacity: int) -> int | None:
        """Its share in slots, at least one; None without a limit."""
        return None if self.share >= 1.0 else max(1, int(self.share * capacity))


class _ProducersFile(BaseModel):
    """The file as a whole."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    producers: tuple[Producer, ...] = Field(min_length=1, description="one table each: [[producers]]")


class Producers:
    """Every producer that may come in."""

    def __init__(self, listed: tuple[Producer, ...] | None) -> None:
        """None: there is one, on this machine, and it shows no token."""
        self._by_digest = {producer.digest: producer for producer in listed or ()}
        names = [producer.name for producer in listed or ()]
        if len(set(names)) < len(names) or len(self._by_digest) < len(names):
            raise BadSetting("two producers have the same name or the same token: give each its own")
        self._local = None if listed else Producer(name=LOCAL, token_sha256="0" * 64)

    @classmethod
    def read(cls, path: Path | None) -> Self:
        """From the file; raises BadSetting with one sentence."""
        if path is None:
            return cls(None)
        return cls(validate(_ProducersFile, read_toml(path)).producers)

    @property
    def names(self) -> list[str]:
        """Of all of them."""
        return [self._local.name] if self._local else [each.name for each in self._by_digest.values()]

    def admit(self, authorization: str, scope: Scope) -> Producer:
        """Who shows this `Bearer TOKEN`; raises NotAllowed unless it is good for `scope`."""
        if self._local is not None:
            return self._local
        kind, _, token = authorization.partition(" ")
        given = hashlib.sha256(token.strip().encode()).hexdigest()
        found = [each for digest, each in self._by_digest.items() if hmac.compare_digest(digest, given)]
        if kind.lower() != "bearer" or not found:
            raise NotAllowed(
                "present a valid token: the header Authorization holds the word Bearer, then the token",
                is_known=False,
            )
        if scope not in found[0].scopes:
            allowed = ", ".join(sorted(found[0].scopes))
            raise NotAllowed(f"the token of {found[0].name} is for {allowed}, not for {scope}", is_known=True)
        return found[0]


class RateLimit:
    """At most so many in a minute: a bucket that holds those of a second, one at least."""

    def __init__(self, per_minute: float | None) -> None:
        self._per_second = None if per_minute is None else per_minute / 60
        self._most = max(1.0, self._per_second or 0.0)
        self._left, self._at = self._most, time.monotonic()

    def take(self, wanted: int) -> int:
        """How many of `wanted` may pass now."""
        if self._per_second is None:
            return wanted
        now = time.monotonic()
        self._left = min(self._most, self._left + (now - self._at) * self._per_second)
        self._at = now
        taken = min(wanted, int(self._left))
        self._left -= taken
        return taken

    def give_back(self, unused: int) -> None:
        """So many of those that passed were not taken."""
        self._left = min(self._most, self._left + unused)

    @property
    def wait_seconds(self) -> float:
        """Until the next one may pass."""
        return 0.0 if self._per_second is None else max(0.0, (1.0 - self._left) / self._per_second)
