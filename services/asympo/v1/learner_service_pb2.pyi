from asympo.v1 import checkpoint_pb2 as _checkpoint_pb2
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LearnerState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LEARNER_STATE_UNSPECIFIED: _ClassVar[LearnerState]
    LEARNER_STATE_STARTING: _ClassVar[LearnerState]
    LEARNER_STATE_WAITING: _ClassVar[LearnerState]
    LEARNER_STATE_TRAINING: _ClassVar[LearnerState]
    LEARNER_STATE_PAUSED: _ClassVar[LearnerState]
    LEARNER_STATE_DRAINING: _ClassVar[LearnerState]
    LEARNER_STATE_STOPPED: _ClassVar[LearnerState]
    LEARNER_STATE_FINISHED: _ClassVar[LearnerState]
LEARNER_STATE_UNSPECIFIED: LearnerState
LEARNER_STATE_STARTING: LearnerState
LEARNER_STATE_WAITING: LearnerState
LEARNER_STATE_TRAINING: LearnerState
LEARNER_STATE_PAUSED: LearnerState
LEARNER_STATE_DRAINING: LearnerState
LEARNER_STATE_STOPPED: LearnerState
LEARNER_STATE_FINISHED: LearnerState

class LearnerServiceStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LearnerServiceStatusResponse(_message.Message):
    __slots__ = ("state", "run", "fence", "step", "total_steps", "objective", "latest_policy", "sequence", "committed_sequence", "backlog")
    STATE_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    FENCE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    TOTAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    LATEST_POLICY_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    BACKLOG_FIELD_NUMBER: _ClassVar[int]
    state: LearnerState
    run: str
    fence: int
    step: int
    total_steps: int
    objective: str
    latest_policy: _checkpoint_pb2.PolicyAnnouncement
    sequence: int
    committed_sequence: int
    backlog: int
    def __init__(self, state: _Optional[_Union[LearnerState, str]] = ..., run: _Optional[str] = ..., fence: _Optional[int] = ..., step: _Optional[int] = ..., total_steps: _Optional[int] = ..., objective: _Optional[str] = ..., latest_policy: _Optional[_Union[_checkpoint_pb2.PolicyAnnouncement, _Mapping]] = ..., sequence: _Optional[int] = ..., committed_sequence: _Optional[int] = ..., backlog: _Optional[int] = ...) -> None: ...

class LearnerServicePauseRequest(_message.Message):
    __slots__ = ("reason", "after_step")
    REASON_FIELD_NUMBER: _ClassVar[int]
    AFTER_STEP_FIELD_NUMBER: _ClassVar[int]
    reason: str
    after_step: int
    def __init__(self, reason: _Optional[str] = ..., after_step: _Optional[int] = ...) -> None: ...

class LearnerServicePauseResponse(_message.Message):
    __slots__ = ("state",)
    STATE_FIELD_NUMBER: _ClassVar[int]
    state: LearnerState
    def __init__(self, state: _Optional[_Union[LearnerState, str]] = ...) -> None: ...

class LearnerServiceResumeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LearnerServiceResumeResponse(_message.Message):
    __slots__ = ("state",)
    STATE_FIELD_NUMBER: _ClassVar[int]
    state: LearnerState
    def __init__(self, state: _Optional[_Union[LearnerState, str]] = ...) -> None: ...

class LearnerServiceSaveRequest(_message.Message):
    __slots__ = ("retain",)
    RETAIN_FIELD_NUMBER: _ClassVar[int]
    retain: bool
    def __init__(self, retain: bool = ...) -> None: ...

class LearnerServiceSaveResponse(_message.Message):
    __slots__ = ("state_name", "step", "sequence")
    STATE_NAME_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    state_name: str
    step: int
    sequence: int
    def __init__(self, state_name: _Optional[str] = ..., step: _Optional[int] = ..., sequence: _Optional[int] = ...) -> None: ...

class LearnerServiceWatchCheckpointsRequest(_message.Message):
    __slots__ = ("after",)
    AFTER_FIELD_NUMBER: _ClassVar[int]
    after: _checkpoint_pb2.PolicyAnnouncement
    def __init__(self, after: _Optional[_Union[_checkpoint_pb2.PolicyAnnouncement, _Mapping]] = ...) -> None: ...

class LearnerServiceWatchCheckpointsResponse(_message.Message):
    __slots__ = ("announcement",)
    ANNOUNCEMENT_FIELD_NUMBER: _ClassVar[int]
    announcement: _checkpoint_pb2.PolicyAnnouncement
    def __init__(self, announcement: _Optional[_Union[_checkpoint_pb2.PolicyAnnouncement, _Mapping]] = ...) -> None: ...
