"""Settings of one generator. What is sampled, and from which model and task, comes from the run itself."""

from typing import ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from asympo.common.control.settings import ControlSettings, Port, is_loopback
from asympo.common.names import MAX_HOLDER_CHARS
from asympo.common.paths import OptionalPath, OptionalPathOrName
from asympo.engines.settings import EngineSettings, OpenAISettings, SimulatedSettings


class DoorOptions(BaseModel):
    """Where programs may ask the engine, if they may."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    port: Port | None = Field(
        default=None, description="port of the OpenAI-compatible door; if not given, there is none"
    )
    host: str = Field(default="127.0.0.1", description="its address; beyond loopback it needs tokens")
    tokens: OptionalPath = Field(
        default=None,
        description="file with the tokens of callers, one on each line; none: callers need no token",
    )
    model_name: str = Field(default="policy", min_length=1, description="name of the model in requests")
    tool_call_parser: str | None = Field(
        default=None,
        description="vLLM's parser of tool calls (hermes, …); none: tools are refused",
    )

    @model_validator(mode="after")
    def _is_guarded(self) -> Self:
        if self.tokens is None and not is_loopback(self.host):
            raise ValueError("beyond this machine callers need tokens: give tokens or a loopback address")
        return self


class GeneratorSettings(ControlSettings):
    """Settings of a generator."""

    service: ClassVar[str] = "generator"

    holder: str = Field(
        default="",
        max_length=MAX_HOLDER_CHARS,
        description="name for its leases; host and process id if empty",
    )
    model: OptionalPathOrName = Field(
        default=None, description="where the run's model is on this machine, if elsewhere"
    )
    task_path: str | None = Field(
        default=None, description="where the task's file is on this machine, if elsewhere"
    )
    allow_python: bool = Field(default=False, description="allow the task to score with your Python code")
    engine: Literal["vllm", "simulated", "openai"] = Field(
        default="vllm", description="engine that samples the responses; openai: a server of your own"
    )
    vllm: EngineSettings = EngineSettings()
    simulated: SimulatedSettings = SimulatedSettings()
    openai: OpenAISettings = OpenAISettings()
    max_groups_in_flight: int = Field(
        default=8, ge=1, le=4096, description="prompts that it leases at the same time"
    )

    gpu_lock: OptionalPath = Field(
        default=None,
        description="file that the learner on the same GPU is given, too: the engine sleeps while that "
        "computes; if not given, both use the GPU at once",
    )

    http_host: str = Field(default="127.0.0.1", description="address of health, metrics and status")
    http_port: Port = Field(default=8081, description="port of health, metrics, status; 0 picks one")
    grpc_port: Port = Field(default=50052, description="port of gRPC; 0 picks one")

    door: DoorOptions = DoorOptions()

    reward_timeout_seconds: float = Field(
        default=10.0, gt=0.0, description="time limit for scoring one response"
    )
    reward_workers: int = Field(default=1, ge=1, le=64, description="processes that score responses")

    probe_tolerance: float | None = Field(
        default=None, gt=0.0, description="has no effect: weights are read back exactly"
    )
    probe_timeout_seconds: float = Field(
        default=120.0, gt=0.0, description="time limit for scoring one probe sequence"
    )
    max_consistent_reloads: int = Field(
        default=50,
        ge=1,
        description="an alert is raised after this many reloads in a row that are not proved",
    )
    max_engine_failures: int = Field(
        default=5, ge=1, description="the process ends after this many failed generations in a row"
    )
    reload_share: float = Field(
        default=0.25,
        gt=0.0,
        le=1.0,
        description="share of the generators that may load a policy at the same time, once one has proved it",
    )
    policy_poll_seconds: float = Field(
        default=10.0, gt=0.0, description="how often to look for policies that were not announced"
    )
    slot_wait_seconds: float = Field(
        default=2.0, gt=0.0, le=60.0, description="longest single wait for a slot"
    )
    presence_seconds: float = Field(default=2.0, gt=0.0, description="time between reports of its own state")
    drain_seconds: float = Field(
        default=25.0, ge=0.0, description="time for groups and requests in flight to finish at a stop"
    )
    exit_when_run_ends: bool = Field(
        default=False, description="exit when the run ends; otherwise stay up, idle"
    )

    append_journal: OptionalPath = Field(
        default=None,
        description="JSONL file for every append that the broker acknowledged; if not given, none is written",
    )

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        if self.http_port and self.http_port == self.grpc_port and not self.grpc_host.startswith("unix:"):
            raise ValueError(f"http_port and grpc_port are both {self.http_port}: give two different ones")
        return self

    @model_validator(mode="after")
    def _can_sleep(self) -> Self:
        if self.gpu_lock is None:
            return self
        if self.engine == "openai":
            raise ValueError("gpu_lock needs an engine that can sleep, and engine is openai: leave it out")
        if self.engine == "vllm" and not self.vllm.enable_sleep_mode:
            raise ValueError("gpu_lock needs an engine that can sleep: set vllm.enable_sleep_mode to true")
        return self
