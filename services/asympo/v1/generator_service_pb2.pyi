from asympo.v1 import rollout_pb2 as _rollout_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GeneratorState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    GENERATOR_STATE_UNSPECIFIED: _ClassVar[GeneratorState]
    GENERATOR_STATE_STARTING: _ClassVar[GeneratorState]
    GENERATOR_STATE_WAITING_FOR_POLICY: _ClassVar[GeneratorState]
    GENERATOR_STATE_GENERATING: _ClassVar[GeneratorState]
    GENERATOR_STATE_PAUSED: _ClassVar[GeneratorState]
    GENERATOR_STATE_DRAINING: _ClassVar[GeneratorState]
    GENERATOR_STATE_STOPPED: _ClassVar[GeneratorState]

class ReloadVerdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RELOAD_VERDICT_UNSPECIFIED: _ClassVar[ReloadVerdict]
    RELOAD_VERDICT_PROVED: _ClassVar[ReloadVerdict]
    RELOAD_VERDICT_CONSISTENT: _ClassVar[ReloadVerdict]
    RELOAD_VERDICT_FAILED: _ClassVar[ReloadVerdict]
GENERATOR_STATE_UNSPECIFIED: GeneratorState
GENERATOR_STATE_STARTING: GeneratorState
GENERATOR_STATE_WAITING_FOR_POLICY: GeneratorState
GENERATOR_STATE_GENERATING: GeneratorState
GENERATOR_STATE_PAUSED: GeneratorState
GENERATOR_STATE_DRAINING: GeneratorState
GENERATOR_STATE_STOPPED: GeneratorState
RELOAD_VERDICT_UNSPECIFIED: ReloadVerdict
RELOAD_VERDICT_PROVED: ReloadVerdict
RELOAD_VERDICT_CONSISTENT: ReloadVerdict
RELOAD_VERDICT_FAILED: ReloadVerdict

class Reload(_message.Message):
    __slots__ = ("policy_step", "verdict", "pause_seconds", "reload_seconds", "num_requests_in_flight", "finished_at_seconds")
    POLICY_STEP_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    PAUSE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    RELOAD_SECONDS_FIELD_NUMBER: _ClassVar[int]
    NUM_REQUESTS_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    FINISHED_AT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    policy_step: int
    verdict: ReloadVerdict
    pause_seconds: float
    reload_seconds: float
    num_requests_in_flight: int
    finished_at_seconds: float
    def __init__(self, policy_step: _Optional[int] = ..., verdict: _Optional[_Union[ReloadVerdict, str]] = ..., pause_seconds: _Optional[float] = ..., reload_seconds: _Optional[float] = ..., num_requests_in_flight: _Optional[int] = ..., finished_at_seconds: _Optional[float] = ...) -> None: ...

class GeneratorServiceStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GeneratorServiceStatusResponse(_message.Message):
    __slots__ = ("state", "run", "holder", "policy_step", "policy_fence", "num_groups_in_flight", "num_groups_held", "num_groups_appended", "num_responses", "num_tokens", "tokens_per_second", "num_reloads", "last_reload")
    STATE_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    POLICY_STEP_FIELD_NUMBER: _ClassVar[int]
    POLICY_FENCE_FIELD_NUMBER: _ClassVar[int]
    NUM_GROUPS_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    NUM_GROUPS_HELD_FIELD_NUMBER: _ClassVar[int]
    NUM_GROUPS_APPENDED_FIELD_NUMBER: _ClassVar[int]
    NUM_RESPONSES_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    NUM_RELOADS_FIELD_NUMBER: _ClassVar[int]
    LAST_RELOAD_FIELD_NUMBER: _ClassVar[int]
    state: GeneratorState
    run: str
    holder: str
    policy_step: int
    policy_fence: int
    num_groups_in_flight: int
    num_groups_held: int
    num_groups_appended: int
    num_responses: int
    num_tokens: int
    tokens_per_second: float
    num_reloads: int
    last_reload: Reload
    def __init__(self, state: _Optional[_Union[GeneratorState, str]] = ..., run: _Optional[str] = ..., holder: _Optional[str] = ..., policy_step: _Optional[int] = ..., policy_fence: _Optional[int] = ..., num_groups_in_flight: _Optional[int] = ..., num_groups_held: _Optional[int] = ..., num_groups_appended: _Optional[int] = ..., num_responses: _Optional[int] = ..., num_tokens: _Optional[int] = ..., tokens_per_second: _Optional[float] = ..., num_reloads: _Optional[int] = ..., last_reload: _Optional[_Union[Reload, _Mapping]] = ...) -> None: ...

class GeneratorServicePauseRequest(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class GeneratorServicePauseResponse(_message.Message):
    __slots__ = ("state",)
    STATE_FIELD_NUMBER: _ClassVar[int]
    state: GeneratorState
    def __init__(self, state: _Optional[_Union[GeneratorState, str]] = ...) -> None: ...

class GeneratorServiceResumeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GeneratorServiceResumeResponse(_message.Message):
    __slots__ = ("state",)
    STATE_FIELD_NUMBER: _ClassVar[int]
    state: GeneratorState
    def __init__(self, state: _Optional[_Union[GeneratorState, str]] = ...) -> None: ...

class GeneratorServiceDrainRequest(_message.Message):
    __slots__ = ("deadline_seconds",)
    DEADLINE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    deadline_seconds: float
    def __init__(self, deadline_seconds: _Optional[float] = ...) -> None: ...

class GeneratorServiceDrainResponse(_message.Message):
    __slots__ = ("num_groups_appended", "num_groups_handed_back")
    NUM_GROUPS_APPENDED_FIELD_NUMBER: _ClassVar[int]
    NUM_GROUPS_HANDED_BACK_FIELD_NUMBER: _ClassVar[int]
    num_groups_appended: int
    num_groups_handed_back: int
    def __init__(self, num_groups_appended: _Optional[int] = ..., num_groups_handed_back: _Optional[int] = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ("temperature", "top_p", "max_tokens", "stop", "seed", "min_tokens")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    MIN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_p: float
    max_tokens: int
    stop: _containers.RepeatedScalarFieldContainer[str]
    seed: int
    min_tokens: int
    def __init__(self, temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., max_tokens: _Optional[int] = ..., stop: _Optional[_Iterable[str]] = ..., seed: _Optional[int] = ..., min_tokens: _Optional[int] = ...) -> None: ...

class GeneratorServiceGenerateRequest(_message.Message):
    __slots__ = ("prompts", "num_samples", "sampling")
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    NUM_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    prompts: _containers.RepeatedCompositeFieldContainer[_rollout_pb2.Prompt]
    num_samples: int
    sampling: Sampling
    def __init__(self, prompts: _Optional[_Iterable[_Union[_rollout_pb2.Prompt, _Mapping]]] = ..., num_samples: _Optional[int] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ...) -> None: ...

class GeneratedResponse(_message.Message):
    __slots__ = ("token_ids", "text", "finish_reason")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    text: str
    finish_reason: _rollout_pb2.FinishReason
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., text: _Optional[str] = ..., finish_reason: _Optional[_Union[_rollout_pb2.FinishReason, str]] = ...) -> None: ...

class GeneratedGroup(_message.Message):
    __slots__ = ("responses",)
    RESPONSES_FIELD_NUMBER: _ClassVar[int]
    responses: _containers.RepeatedCompositeFieldContainer[GeneratedResponse]
    def __init__(self, responses: _Optional[_Iterable[_Union[GeneratedResponse, _Mapping]]] = ...) -> None: ...

class GeneratorServiceGenerateResponse(_message.Message):
    __slots__ = ("groups", "policy_step", "last_policy_step")
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    POLICY_STEP_FIELD_NUMBER: _ClassVar[int]
    LAST_POLICY_STEP_FIELD_NUMBER: _ClassVar[int]
    groups: _containers.RepeatedCompositeFieldContainer[GeneratedGroup]
    policy_step: int
    last_policy_step: int
    def __init__(self, groups: _Optional[_Iterable[_Union[GeneratedGroup, _Mapping]]] = ..., policy_step: _Optional[int] = ..., last_policy_step: _Optional[int] = ...) -> None: ...
