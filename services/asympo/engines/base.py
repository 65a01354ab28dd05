"""What a generator asks of an inference engine; nothing here imports one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from asympo.common.records import FinishReason

if TYPE_CHECKING:
    from fastapi import FastAPI

    from asympo.common.checkpoints import Manifest


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingSettings:
    """How the responses of one request are drawn."""

    temperature: float = 1.0
    """0 means greedy."""
    top_p: float = 1.0
    """Nucleus mass, in (0, 1]."""
    max_tokens: int
    """Limit of one response in tokens, end-of-sequence included."""
    min_tokens: int = 0
    """End-of-sequence and stop strings are ignored before this many tokens."""
    stop: tuple[str, ...] = ()
    """Strings that end a response; they stay in its token ids."""
    seed: int | None = None
    """Makes the request repeatable; absent draws from the engine's own stream."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One response as the engine drew it."""

    token_ids: tuple[int, ...]
    """Exactly the sampled ids, the end-of-sequence id included where one was sampled; none where only a
    server knows them."""
    text: str
    """The response as text, special tokens left out and nothing stripped."""
    finish_reason: FinishReason
    stop_string: str = ""
    """What ended a response without ids, when that is known to be no end-of-sequence token."""
    num_tokens: int = 0
    """Tokens of a response without ids, as the server counts them."""

    @property
    def length(self) -> int:
        """Tokens, as far as they are known."""
        return len(self.token_ids) or self.num_tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class ReloadTiming:
    """What one reload cost."""

    pause_seconds: float
    """From the request to pause until tokens flow again."""
    reload_seconds: float
    """The part of the pause in which weights were loaded and fixed up."""
    readback_seconds: float
    """The part of the pause in which they were read back."""
    num_in_flight: int
    """Responses that were being decoded when the pause began, all of which continue."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Readback:
    """Weights as the engine's own layers hold them, compared with a policy's files."""

    num_values: int
    """Values compared."""
    num_changed: int | None
    """Places among them in which the policy and the weights before differ; None when those are not known."""
    wrong: tuple[str, ...] = ()
    """Layers whose values differ from the policy's, with how many."""
    uncovered: tuple[str, ...] = ()
    """What could not be read back, so that nothing is proved of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reloaded:
    """Outcome of one reload."""

    timing: ReloadTiming
    readback: Readback


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineStats:
    """Counters since start()."""

    num_tokens_generated: int
    num_responses: int
    num_in_flight: int
    """Responses asked for and not yet returned."""
    num_reloads: int
    cache_ratio: float = 0.0
    """Share of the KV cache that requests hold; 0 without a cache."""
    num_preemptions: int = 0
    """Requests that lost their place in the cache, and are computed again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DoorTerms:
    """What a generator asks of a door to its engine."""

    model_name: str
    """What the model is called in requests."""
    tool_call_parser: str | None
    """vLLM's name of the parser of the model's tool calls; None: tools are refused."""
    opened: Callable[[], Awaitable[int]]
    """Waits while the loaded weights have no verdict; gives what `passes` asks for."""
    passes: Callable[[int], Awaitable[bool]]
    """Waits for the verdict on what was sampled since; False when any weights behind it failed."""
    cache_salt: Callable[[], str]
    """Keeps cached prompts of different policies apart."""
    policy_step: Callable[[], int | None]
    """Step of the policy that is served; None for the bare model."""


class Engine(Protocol):
    """An inference engine that swaps weights while it serves.

    Errors common to all methods: EngineBroken when the engine cannot be trusted any more; the process
    should exit. BadModel from start() when the model directory cannot be loaded. PromptRefused from
    generate() and mean_nll() when the token ids cannot be served; the engine is fine.
    """

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer (`encode`, `decode`, `apply_chat_template`); valid after start()."""

    @property
    def stats(self) -> EngineStats: ...

    @property
    def context_length(self) -> int | None:
        """Most tokens of a prompt and its response together, after start(); None where nobody knows.

        Memory may allow fewer than the model does. A response that reaches it is cut off.
        """

    @property
    def can_reload(self) -> bool:
        """False where the weights stay what they are: nobody knows which policy, so the oldest is assumed."""

    @property
    def is_broken(self) -> bool:
        """True once a method raised EngineBroken or the engine died; it never becomes False again."""

    async def start(self, *, model_path: Path) -> None:
        """Load the model directory and serve it."""

    async def generate(
        self,
        prompt_ids: Sequence[int],
        *,
        num_samples: int,
        sampling: SamplingSettings,
        request_id: str,
        cache_salt: str,
        messages: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[Sample]:
        """Draw `num_samples` responses to one prompt; continues across reload().

        `messages` are what the ids were rendered from, for engines that render by themselves.
        `cache_salt` keeps cached prompts of different policies apart: one value for each policy.
        Requests of an aborted `request_id` return what they have, with finish reason `abort`.
        """

    async def mean_nll(self, token_ids: Sequence[int], *, num_prompt_tokens: int) -> float:
        """Mean -log p of `token_ids[num_prompt_tokens:]` under the loaded weights, before other requests.

        Waits while the engine is paused. Broken weights may give nan.
        """

    async def reload(self, policy_path: Path, *, manifest: Manifest) -> Reloaded:
        """Swap to the policy in `policy_path`, and read it back; requests in flight are frozen, then go on.

        An engine that pause() had frozen before stays frozen.

        Raises EngineBroken, and leaves the engine paused for good, if anything goes wrong; verify files
        first.
        """

    async def read_back(self, policy_path: Path, *, manifest: Manifest) -> Readback:
        """Compare what the engine was started on with the policy in `policy_path`."""

    async def abort(self, request_id: str) -> None:
        """End the responses of one generate() call now; unknown ids are ignored."""

    async def pause(self) -> None:
        """Freeze decoding; requests are accepted and wait. Idempotent."""

    async def resume(self) -> None:
        """Undo pause(). Idempotent."""

    def asleep(self) -> AbstractAsyncContextManager[None]:
        """Inside, its GPU's memory is given back, and requests wait, those in flight included.

        Whatever else touches the engine waits, too. Raises EngineBroken when it does not fall asleep or wake
        up; BadSetting where the engine cannot do this.
        """

    async def build_door(self, terms: DoorTerms) -> FastAPI:
        """An OpenAI-compatible application over this engine; BadSetting if it has none."""

    async def close(self) -> None:
        """Free the engine's processes and memory. Idempotent."""
