"""Settings of one evaluator. Model, task and sampling come from the run itself."""

from typing import ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from asympo.common.control.settings import Port, is_loopback
from asympo.common.paths import OptionalPath
from asympo.common.settings import ServiceSettings
from asympo.engines.settings import EngineSettings, SimulatedSettings
from asympo.evaluator.config import EvalConfig, check_names


class EvaluatorSettings(ServiceSettings, protected_namespaces=()):
    """Settings of an evaluator."""

    service: ClassVar[str] = "evaluator"

    evals: tuple[EvalConfig, ...] = Field(
        default=(EvalConfig(),),
        min_length=1,
        description="what is measured; if not given, the held-out prompts",
    )
    engine: Literal["vllm", "simulated", "generators"] = Field(
        default="vllm", description="an engine of its own, or free slots of the generators on this machine"
    )
    generators: tuple[str, ...] = Field(
        default=(), description="gRPC addresses of generators on this machine, for engine = generators"
    )
    doors: tuple[str, ...] = Field(
        default=(), description="addresses of these generators' doors (http://HOST:PORT/v1), for episodes"
    )
    doors_token: OptionalPath = Field(default=None, description="file with the token that doors ask for")
    tool_call_parser: str | None = Field(
        default=None,
        description="vLLM's name of the model's tool calls; for episodes",
    )
    environment: str | None = Field(
        default=None, description="the environment that may be played: that of the run's task"
    )
    environment_python: OptionalPath = Field(default=None, description="Python that has the environment")
    vllm: EngineSettings = EngineSettings()
    simulated: SimulatedSettings = SimulatedSettings()
    task_path: str | None = Field(
        default=None, description="where the run's task file is on this machine, if elsewhere"
    )
    max_prompts_in_flight: int = Field(
        default=8, ge=1, le=4096, description="prompts answered at the same time"
    )
    allow_python: bool = Field(default=False, description="allow tasks to score with your Python code")
    reward_timeout_seconds: float = Field(
        default=10.0, gt=0.0, description="time limit for scoring one response"
    )
    reward_workers: int = Field(default=1, ge=1, le=64, description="processes that score responses")
    results: OptionalPath = Field(
        default=None, description="JSONL file for every result; if not given, results are only on the broker"
    )
    http_host: str = Field(default="127.0.0.1", description="address of health, metrics and status")
    http_port: Port = Field(default=8083, description="port of health, metrics, status; 0 picks one")
    policy_poll_seconds: float = Field(
        default=10.0, gt=0.0, description="how often to look for policies that were not announced"
    )
    slot_wait_seconds: float = Field(
        default=2.0, gt=0.0, le=60.0, description="longest single wait for an announcement"
    )
    exit_when_run_ends: bool = Field(
        default=False,
        description="exit once the last policy of a finished run is measured, or has failed three times",
    )

    @field_validator("evals")
    @classmethod
    def _names_differ(cls, value: tuple[EvalConfig, ...]) -> tuple[EvalConfig, ...]:
        return check_names(value)

    @field_validator("generators")
    @classmethod
    def _are_on_this_machine(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for address in value:
            host = address.rpartition(":")[0].strip("[]")
            if not address.startswith("unix:") and not is_loopback(host):
                raise ValueError(
                    f"{address} is not on this machine: generators elsewhere require certificates, so give "
                    "the evaluator an engine of its own"
                )
        return value

    @model_validator(mode="after")
    def _generators_are_named(self) -> Self:
        if (self.engine == "generators") != bool(self.generators):
            raise ValueError("engine = generators and the list generators go together: give both or neither")
        if self.generators and any(each.stop == () for each in self.evals):
            raise ValueError(
                "generators always use the run's stop strings: to sample without them, give the "
                "evaluator an engine of its own"
            )
        return self
