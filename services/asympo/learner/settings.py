"""Settings of the learner: they describe the run (every generator reads them from it) and how to train."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from asympo.common.control.settings import ControlSettings, Port
from asympo.common.names import MAX_HOLDER_CHARS, directory_of_run
from asympo.common.paths import OptionalPath, PathOrName
from asympo.common.records import MAX_RESPONSES
from asympo.rewards.progress import RunProgress
from asympo.tasks.config import TaskConfig

ObjectiveName = Literal["asympo", "spo", "naive", "gpg"]
"""The names in `step/objectives.py`, which imports torch."""

HEAD_ROWS = {"cpu": 256, "cuda": 2048}
"""Each chunk of logits reads and writes the head's gradient once, 1.2 GB of it for a 1.7B model: a GPU takes
so many rows that they are as large. A CPU is quickest with what is near its cache."""

HEAD_KEPT_BYTES = 1 << 28
"""Probabilities of as many of these chunks are kept for the backward pass as fit into it: a product less."""

QUANTISED_BLOCK = {4: 64, 8: 256}
"""Values that share a scale, by the bits of each: those of bitsandbytes."""

ALL_LINEAR: Literal["all-linear"] = "all-linear"

TrackerName = Literal["tensorboard", "wandb", "mlflow"]


class TrackerSettings(BaseModel):
    """Which trackers get the numbers, beside the JSONL file that always does."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: tuple[TrackerName, ...] = Field((), description="trackers beside the JSONL file")
    project: str = Field("asympo", min_length=1, description="W&B project and MLflow experiment")
    wandb_mode: Literal["offline", "online"] = Field(
        "offline", description="offline writes a folder for `wandb sync`; online needs an API key"
    )
    mlflow_uri: str | None = Field(
        None, description="MLflow tracking server; if not given, a folder of the run"
    )


class SamplingOptions(BaseModel):
    """How responses are drawn; part of the run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: float = Field(default=1.0, ge=0.0, le=10.0, description="0 is greedy")
    top_p: float = Field(default=1.0, gt=0.0, le=1.0, description="nucleus mass")
    max_tokens: int = Field(
        default=256, ge=1, description="most tokens of one response, end-of-sequence included"
    )
    min_tokens: int = Field(default=0, ge=0, description="a response cannot end before this many tokens")
    stop: tuple[str, ...] = Field(default=(), description="strings that end a response")

    def to_run_config(self) -> dict[str, Any]:
        """As every service compares it."""
        return {**self.model_dump(), "stop": list(self.stop)}


class LoraSettings(BaseModel):
    """An adapter that is trained instead of the model's own weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int = Field(16, ge=1, le=4096, description="columns of the pairs of matrices")
    alpha: int = Field(32, ge=1, description="what is added is scaled by alpha / rank")
    rank_stabilised: bool = Field(False, description="scaled by alpha over the root of rank (rsLoRA)")
    targets: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        ALL_LINEAR,
        description="layers that get a pair, by the ends of their names, experts by that of their parameter; "
        "all linears but the head, and all experts",
    )
    base_bits: int | None = Field(
        None,
        description="4 or 8: bits of a value of the base's linears and experts, for less memory and more "
        "time; the base is published as they round it. It is loaded in float32 first. If not given, bfloat16",
    )
    dropout: float = Field(0.0, description="only 0: the loss needs the policy's own probabilities")

    @field_validator("base_bits")
    @classmethod
    def _is_known(cls, value: int | None) -> int | None:
        if value is not None and value not in QUANTISED_BLOCK:
            raise ValueError(f"base_bits is {value}: give 4 or 8, or leave it out for bfloat16")
        return value

    @field_validator("dropout")
    @classmethod
    def _is_none(cls, value: float) -> float:
        if value:
            raise ValueError(
                f"dropout is {value}: give 0, because with dropout the learner's probabilities would not be "
                "the policy's"
            )
        return value


class LearnerSettings(ControlSettings):
    """Settings of the learner."""

    service: ClassVar[str] = "learner"

    # The run
    model: PathOrName = Field(
        default="HuggingFaceTB/SmolLM2-135M-Instruct", description="Hugging Face id or path"
    )
    task: TaskConfig = Field(
        default_factory=lambda: TaskConfig.model_validate({}), description="what is asked"
    )
    sampling: SamplingOptions = SamplingOptions()
    overlong_reward: float | None = Field(
        default=None, description="reward of a truncated response; if not given, it is scored like any other"
    )
    group_size: int = Field(default=8, ge=2, le=MAX_RESPONSES, description="G, responses per prompt")
    groups_per_step: int = Field(default=8, ge=1, description="groups with signal that end a step")
    max_groups_per_step: int | None = Field(
        default=None, ge=1, description="groups of any kind that end a step; if not given, four times as many"
    )
    publish_every: int = Field(default=1, ge=1, description="steps between two published policies")
    save_every: int = Field(default=10, ge=1, description="steps between two commits of durable state")
    max_uncommitted_bytes: int = Field(
        default=2**30,
        ge=1,
        description="groups since the last commit that make the next one early",
    )
    max_staleness: int = Field(default=1, ge=0, description="largest queue staleness; 0 is synchronous")
    max_generation_staleness: int | None = Field(
        default=None, ge=0, description="how many policies behind a generator may be when it appends"
    )
    lease_seconds: float = Field(
        default=15.0, gt=0.0, description="how long a lease lasts unless it is renewed"
    )
    max_lease_seconds: float = Field(
        default=900.0, gt=0.0, description="how long a lease lasts at most, however often it is renewed"
    )
    max_prompt_failures: int = Field(
        default=3, ge=1, description="failures after which a prompt is set aside"
    )
    num_epochs: int = Field(default=0, ge=0, description="passes over the prompts; 0 is endless")
    seed: int = Field(
        default=0, ge=0, description="decides the order of prompts and every random choice of the learner"
    )

    # The objective and the optimizer
    objective: ObjectiveName = Field(default="asympo", description="the loss that is minimised")
    mean_nll_floor: float = Field(default=1e-4, gt=0.0, le=1.0, description="asympo: clamp of the normaliser")
    negative_scale: float = Field(default=0.3, gt=0.0, le=1.0, description="spo: scale of negative responses")
    optimizer: Literal["adamw", "muon"] = Field(
        default="adamw", description="muon: the hidden matrices, with AdamW for the rest; made for GPUs"
    )
    learning_rate: float = Field(default=1e-5, gt=0.0, description="the highest learning rate")
    beta1: float = Field(default=0.9, ge=0.0, lt=1.0, description="AdamW")
    beta2: float = Field(default=0.95, ge=0.0, lt=1.0, description="AdamW")
    epsilon: float = Field(default=1e-8, gt=0.0, description="AdamW")
    weight_decay: float = Field(default=0.0, ge=0.0, description="of matrices only")
    muon_momentum: float = Field(default=0.95, ge=0.0, lt=1.0, description="Muon")
    max_grad_norm: float = Field(default=1.0, gt=0.0, description="gradients are clipped to this norm")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant", description="of the learning rate after warm-up"
    )
    warmup_steps: int = Field(
        default=0, ge=0, description="steps until the learning rate reaches its highest value"
    )
    final_learning_rate_ratio: float = Field(
        default=0.1, ge=0.0, le=1.0, description="linear, cosine: share left at total_steps"
    )
    total_steps: int | None = Field(
        default=None,
        ge=1,
        description="the run is finished after this many steps; if not given, it has no end",
    )

    lora: LoraSettings | None = Field(
        default=None,
        description="an adapter that is trained; if not given, the model's own weights are",
    )

    # The machine
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="where the policy is trained")
    compute_dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="precision of products; auto measures once which is faster. Weights are float32",
    )
    num_threads: int | None = Field(
        default=None, ge=1, description="CPU threads; if not given, those of the run's first start"
    )
    token_budget: int = Field(
        default=1024, ge=1, description="tokens of one micro-batch; halved when memory runs out"
    )
    max_row_tokens: int | None = Field(
        default=None,
        ge=2,
        description="longest row that is trained for one response, with its prompt and all its segments; "
        "groups that need a longer one are set aside; if not given, what the model takes",
    )
    head_chunk_rows: int | None = Field(
        default=None, ge=1, description="rows of logits that exist at once; none: 256 on a CPU, 2048 on a GPU"
    )
    share_prefixes: Literal["auto", "always", "never"] = Field(
        default="auto",
        description="compute what responses share only once; auto measures once whether that is faster",
    )
    attention: Literal["auto", "blocks", "flex"] = Field(
        default="auto",
        description="one kernel call per block of a row, or FlexAttention (CUDA); auto measures once",
    )
    gpu_lock: OptionalPath = Field(
        default=None,
        description="file that the generators on the same GPU are given, too: they sleep while the learner "
        "computes; if not given, all use the GPU at once",
    )
    gradient_checkpointing: bool = Field(default=False, description="saves memory for a third more time")
    decide_anew: bool = Field(
        default=False,
        description="continue a run of another class of device; what auto means is chosen anew",
    )

    # Checkpoints
    keep_policies: int = Field(default=4, ge=2, description="published policies kept on storage")
    keep_best: str | None = Field(
        default=None, description="evaluation whose best policy is kept, beside keep_policies"
    )
    keep_states: int = Field(default=2, ge=1, description="durable training states kept on storage")
    retain: bool = Field(
        default=False,
        description="archive consumed groups as Parquet, for export and replay",
    )
    publish_retry_seconds: float = Field(
        default=5.0, gt=0.0, description="time between attempts after a failed publish or save"
    )
    probe_tolerance: float = Field(
        default=0.05, gt=0.0, description="written for generators of release 0.1; later ones measure it"
    )

    # Ownership
    take_over: bool = Field(default=False, description="take the run over from a learner that seems alive")
    heartbeat_seconds: float = Field(
        default=10.0, gt=0.3, description="a learner that has been silent for this long counts as gone"
    )
    holder: str = Field(
        default="", max_length=MAX_HOLDER_CHARS, description="name in the log; host and process id if empty"
    )
    drain_seconds: float = Field(
        default=240.0, gt=0.0, description="time to stop in order; after that it ends where it is"
    )
    exit_when_run_ends: bool = Field(
        default=True, description="exit when the run ends; otherwise stay up and answer"
    )
    max_empty_segments: int = Field(
        default=5, ge=1, description="an alert is raised after this many steps in a row without any signal"
    )

    # Doors
    http_host: str = Field(default="127.0.0.1", description="address of page, health, metrics and status")
    http_port: Port = Field(default=8080, description="port of page, health, metrics, status; 0 picks one")
    allowed_hosts: tuple[str, ...] = Field(
        default=(), description="host names under which the page may be requested"
    )
    show_samples: bool = Field(default=False, description="let the page show prompts and responses")
    trackers: TrackerSettings = Field(
        default_factory=lambda: TrackerSettings.model_validate({}),
        description="experiment trackers beside the JSONL file",
    )

    @model_validator(mode="after")
    def _numbers_fit_together(self) -> Self:
        if self.save_every % self.publish_every:
            raise ValueError(
                f"save_every ({self.save_every}) must be a multiple of publish_every ({self.publish_every}): "
                "groups can be committed only after a policy trained on them is published"
            )
        if self.max_groups_per_step is not None and self.max_groups_per_step < self.groups_per_step:
            raise ValueError(
                f"max_groups_per_step is {self.max_groups_per_step}: give at least groups_per_step "
                f"({self.groups_per_step})"
            )
        if self.http_port and self.http_port == self.grpc_port and not self.grpc_host.startswith("unix:"):
            raise ValueError(f"http_port and grpc_port are both {self.http_port}: give two different ones")
        if self.schedule != "constant" and self.total_steps is None:
            raise ValueError(f"the {self.schedule} schedule needs total_steps")
        if self.total_steps is not None and self.warmup_steps >= self.total_steps:
            raise ValueError(
                f"warmup_steps ({self.warmup_steps}) must be below total_steps ({self.total_steps}): the "
                "learning rate would only reach its highest when the run ends"
            )
        if self.lora is not None and self.optimizer == "muon":
            raise ValueError("optimizer is muon: give adamw, Muon is not made for the matrices of lora")
        if self.sampling.min_tokens > self.sampling.max_tokens:
            raise ValueError("sampling.min_tokens is above sampling.max_tokens")
        return self

    def head_rows(self, device: str) -> int:
        """Rows of logits that exist at once on a torch device type."""
        return self.head_chunk_rows or HEAD_ROWS[device]

    @property
    def segment_limit(self) -> int:
        """Groups of any kind that end a step."""
        return self.max_groups_per_step or 4 * self.groups_per_step

    def progress(self, *, num_prompts: int) -> RunProgress:
        """What reward functions are told when no run goes on that would know."""
        # The rollout log is behind it, and settings are read without.
        from asympo.common.rollout_log.run_config import planned_steps

        limits = {"num_epochs": self.num_epochs, "groups_per_step": self.groups_per_step}
        total = planned_steps(self.total_steps, num_prompts=num_prompts, **limits)
        return RunProgress(total_steps=total, num_epochs=self.num_epochs)

    @property
    def run_directory(self) -> Path:
        """Policies, training states, metrics of this run."""
        return directory_of_run(self.checkpoint_root, self.run)
