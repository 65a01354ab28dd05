"""Settings of one generator. What is sampled, and from which model and task, comes from the run itself."""

from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from asympo.common.control.settings import ControlSettings, Port
from asympo.common.names import MAX_HOLDER_CHARS


class VllmOptions(BaseModel):
    """How vLLM uses the machine."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        default="auto", description="weights and cache; auto: float32 on CPUs without bfloat16"
    )
    enforce_eager: bool | None = Field(
        default=None, description="no compilation, no graphs: starts quicker; none: on CPUs only"
    )
    max_num_seqs: int = Field(default=64, ge=1, description="responses decoded together")
    max_model_len: int | None = Field(default=None, ge=2, description="longest prompt plus response")
    max_num_batched_tokens: int | None = Field(default=None, ge=1, description="tokens of one engine step")
    gpu_memory_utilization: float = Field(default=0.9, gt=0.0, le=1.0, description="share of a GPU's memory")
    kv_cache_gib: float | None = Field(
        default=None, gt=0.0, description="KV cache in GiB; none: half a GiB on a CPU, what fits on a GPU"
    )
    tensor_parallel_size: int = Field(default=1, ge=1, description="workers that share one copy of the model")
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


class FaultOptions(BaseModel):
    """Faults of the simulated engine, by policy step."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stale_steps: frozenset[int] = Field(default=frozenset(), description="reloads that change nothing")
    raising_steps: frozenset[int] = Field(default=frozenset(), description="reloads that raise")
    hanging_steps: frozenset[int] = Field(default=frozenset(), description="reloads that hang")
    die_after_responses: int | None = Field(default=None, ge=1, description="breaks after this many")


class SimulatedOptions(BaseModel):
    """How the simulated engine answers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = Field(default=0, description="seed of the answers")
    max_num_seqs: int = Field(default=64, ge=1, description="responses decoded together")
    seconds_per_token: float = Field(default=0.01, ge=0.0, description="time for each token of a response")
    length_kind: Literal["fixed", "lognormal"] = Field(
        default="lognormal", description="whether response lengths have a long tail"
    )
    length_mean_tokens: float = Field(default=8.0, ge=1.0, description="mean length of a response")
    length_sigma: float = Field(default=0.6, ge=0.0, description="spread of the length's logarithm")
    first_accuracy: float = Field(default=0.2, ge=0.0, le=1.0, description="right answers at step 0")
    accuracy_per_step: float = Field(default=0.02, ge=0.0, le=1.0, description="what each step adds")
    last_accuracy: float = Field(default=0.95, ge=0.0, le=1.0, description="upper limit of that share")
    reload_seconds: float = Field(default=0.05, ge=0.0, description="time of one reload")
    reload_timeout_seconds: float = Field(default=600.0, gt=0.0, description="time limit for one reload")
    faults: FaultOptions = FaultOptions()


class GeneratorSettings(ControlSettings):
    """Everything one generator can be told."""

    service: ClassVar[str] = "generator"

    holder: str = Field(
        default="", max_length=MAX_HOLDER_CHARS, description="name for its leases; host and pid if empty"
    )
    model: str | None = Field(
        default=None, description="where the run's model lies on this machine, if elsewhere"
    )
    task_path: str | None = Field(
        default=None, description="where the task's file lies on this machine, if elsewhere"
    )
    allow_python: bool = Field(default=False, description="let the task score with the user's Python code")
    engine: Literal["vllm", "simulated"] = Field(default="vllm", description="what samples the responses")
    vllm: VllmOptions = VllmOptions()
    simulated: SimulatedOptions = SimulatedOptions()
    max_groups_in_flight: int = Field(default=8, ge=1, le=4096, description="prompts leased at the same time")

    http_host: str = Field(default="127.0.0.1", description="address of health, metrics and status")
    http_port: Port = Field(default=8081, description="port of health, metrics, status; 0 picks one")
    grpc_port: Port = Field(default=50052, description="port of gRPC; 0 picks one")

    reward_timeout_seconds: float = Field(
        default=10.0, gt=0.0, description="time limit for scoring one response"
    )
    reward_workers: int = Field(default=1, ge=1, le=64, description="processes that score responses")

    probe_tolerance: float | None = Field(
        default=None, gt=0.0, description="without effect: weights are read back exactly"
    )
    probe_timeout_seconds: float = Field(
        default=120.0, gt=0.0, description="time limit for one probe sequence"
    )
    max_consistent_reloads: int = Field(
        default=50, ge=1, description="reloads in a row that are not proved before an alert is raised"
    )
    max_engine_failures: int = Field(
        default=5, ge=1, description="failed generations in a row after which the process ends"
    )
    policy_poll_seconds: float = Field(
        default=10.0, gt=0.0, description="look for unannounced policies this often"
    )
    slot_wait_seconds: float = Field(
        default=2.0, gt=0.0, le=60.0, description="longest single wait for a slot"
    )
    presence_seconds: float = Field(default=2.0, gt=0.0, description="time between reports of its own state")
    drain_seconds: float = Field(default=25.0, ge=0.0, description="time that groups in flight get at a stop")
    exit_when_run_ends: bool = Field(
        default=False, description="exit when the run ends; otherwise keep serving, idle"
    )

    append_journal: Path | None = Field(
        default=None,
        description="JSONL file for every append that the broker acknowledged; if not given, none is written",
    )

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        if self.http_port and self.http_port == self.grpc_port and not self.grpc_host.startswith("unix:"):
            raise ValueError(f"http_port and grpc_port are both {self.http_port}: give two different ones")
        return self
