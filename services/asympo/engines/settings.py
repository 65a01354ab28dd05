"""Settings of the engines, part of a generator's; nothing here imports an engine."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from asympo.common.paths import OptionalPath


class EngineSettings(BaseModel):
    """How vLLM uses the machine."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        default="auto", description="weights and cache; auto: float32 on CPUs without bfloat16"
    )
    enforce_eager: bool | None = Field(
        default=None, description="no compilation and no graphs, for a quicker start; none: only on CPUs"
    )
    max_num_seqs: int = Field(default=64, ge=1, description="responses decoded at the same time")
    max_model_len: int | None = Field(default=None, ge=2, description="longest prompt plus response")
    max_num_batched_tokens: int | None = Field(default=None, ge=1, description="tokens in one engine step")
    gpu_memory_utilization: float = Field(
        default=0.9, gt=0.0, le=1.0, description="share of the GPU's memory"
    )
    kv_cache_gib: float | None = Field(
        default=None, gt=0.0, description="KV cache in GiB; none: half a GiB on a CPU, what fits on a GPU"
    )
    # vLLM's own 128 is longer than most prompts of short tasks: each response of a group would read it again.
    block_size: int = Field(
        default=32,
        ge=16,
        multiple_of=16,
        description="tokens of a cache block, of which only whole ones are shared (CPU only)",
    )
    enable_sleep_mode: bool = Field(
        default=False, description="keep its GPU memory where vLLM can give it back (see gpu_lock)"
    )
    tensor_parallel_size: int = Field(default=1, ge=1, description="workers that split the model among them")
    cpu_ids: tuple[int, ...] | None = Field(default=None, description="cores to bind to (CPU only)")
    num_threads: int | None = Field(default=None, ge=1, description="threads when not bound (CPU only)")
    seed: int = Field(default=0, description="seed of the sampler")
    self_test: bool = Field(
        default=False, description="perturb every kind of tensor, and require the output to change"
    )
    start_timeout_seconds: float = Field(
        default=900.0, gt=0.0, description="time limit for loading the model"
    )
    reload_timeout_seconds: float = Field(
        default=600.0, gt=0.0, description="time limit for each phase of a reload"
    )


class SimulatedFaults(BaseModel):
    """Faults of the simulated engine, by policy step."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stale_steps: frozenset[int] = Field(default=frozenset(), description="reloads that change nothing")
    raising_steps: frozenset[int] = Field(default=frozenset(), description="reloads that raise")
    hanging_steps: frozenset[int] = Field(default=frozenset(), description="reloads that hang")
    die_after_responses: int | None = Field(default=None, ge=1, description="breaks after this many")


class SimulatedSettings(BaseModel):
    """How the simulated engine answers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = Field(default=0, description="seed of the answers")
    max_num_seqs: int = Field(default=64, ge=1, description="responses decoded at the same time")
    seconds_per_token: float = Field(default=0.01, ge=0.0, description="time for each token of a response")
    length_kind: Literal["fixed", "lognormal"] = Field(
        default="lognormal", description="whether response lengths have a long tail"
    )
    length_mean_tokens: float = Field(default=8.0, ge=1.0, description="mean length of a response")
    length_sigma: float = Field(default=0.6, ge=0.0, description="spread of the length's logarithm")
    first_accuracy: float = Field(default=0.2, ge=0.0, le=1.0, description="right answers at step 0")
    accuracy_per_step: float = Field(default=0.02, ge=0.0, le=1.0, description="what each step adds to it")
    last_accuracy: float = Field(default=0.95, ge=0.0, le=1.0, description="upper limit of that share")
    reload_seconds: float = Field(default=0.05, ge=0.0, description="time of one reload")
    reload_timeout_seconds: float = Field(default=600.0, gt=0.0, description="time limit for one reload")
    faults: SimulatedFaults = SimulatedFaults()


class OpenAISettings(BaseModel):
    """Which server answers, and how it is asked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base_url: str | None = Field(
        default=None, pattern=r"^https?://", description="address of the server, up to /v1"
    )
    model: str | None = Field(
        default=None, min_length=1, description="its name for the model; none: the only one that it has"
    )
    api_key_file: OptionalPath = Field(
        default=None, description="file with the API key; none: the one in OPENAI_API_KEY, if any"
    )
    prompt_as: Literal["token_ids", "text", "messages"] = Field(
        default="token_ids",
        description="how it is asked; token_ids: it has the run's vocabulary; messages: it has a template",
    )
    reload: Literal["none", "vllm", "sglang"] = Field(
        default="none", description="its own way to take new weights; none: it keeps those that it has"
    )
    max_num_seqs: int = Field(default=64, ge=1, description="responses under way at the same time")
    max_retries: int = Field(default=6, ge=0, le=20, description="further attempts while it is away or busy")
    request_timeout_seconds: float = Field(default=600.0, gt=0.0, description="time limit for one response")
    start_timeout_seconds: float = Field(
        default=900.0, gt=0.0, description="time limit for it to answer at the start"
    )
    reload_timeout_seconds: float = Field(default=600.0, gt=0.0, description="time limit for a reload")
