from asympo.v1 import checkpoint_pb2 as _checkpoint_pb2
from asympo.v1 import rollout_pb2 as _rollout_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SubmitOutcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SUBMIT_OUTCOME_UNSPECIFIED: _ClassVar[SubmitOutcome]
    SUBMIT_OUTCOME_APPENDED: _ClassVar[SubmitOutcome]
    SUBMIT_OUTCOME_DUPLICATE: _ClassVar[SubmitOutcome]
    SUBMIT_OUTCOME_TOO_OLD: _ClassVar[SubmitOutcome]
    SUBMIT_OUTCOME_NO_CAPACITY: _ClassVar[SubmitOutcome]
    SUBMIT_OUTCOME_OVER_SHARE: _ClassVar[SubmitOutcome]
    SUBMIT_OUTCOME_RUN_ENDED: _ClassVar[SubmitOutcome]
    SUBMIT_OUTCOME_PAUSED: _ClassVar[SubmitOutcome]
    SUBMIT_OUTCOME_NOT_STARTED: _ClassVar[SubmitOutcome]
    SUBMIT_OUTCOME_INVALID: _ClassVar[SubmitOutcome]
    SUBMIT_OUTCOME_LEASE_LOST: _ClassVar[SubmitOutcome]
    SUBMIT_OUTCOME_TOO_STALE: _ClassVar[SubmitOutcome]
    SUBMIT_OUTCOME_TOO_LARGE: _ClassVar[SubmitOutcome]
SUBMIT_OUTCOME_UNSPECIFIED: SubmitOutcome
SUBMIT_OUTCOME_APPENDED: SubmitOutcome
SUBMIT_OUTCOME_DUPLICATE: SubmitOutcome
SUBMIT_OUTCOME_TOO_OLD: SubmitOutcome
SUBMIT_OUTCOME_NO_CAPACITY: SubmitOutcome
SUBMIT_OUTCOME_OVER_SHARE: SubmitOutcome
SUBMIT_OUTCOME_RUN_ENDED: SubmitOutcome
SUBMIT_OUTCOME_PAUSED: SubmitOutcome
SUBMIT_OUTCOME_NOT_STARTED: SubmitOutcome
SUBMIT_OUTCOME_INVALID: SubmitOutcome
SUBMIT_OUTCOME_LEASE_LOST: SubmitOutcome
SUBMIT_OUTCOME_TOO_STALE: SubmitOutcome
SUBMIT_OUTCOME_TOO_LARGE: SubmitOutcome

class RolloutIngestServiceSubmitRequest(_message.Message):
    __slots__ = ("group", "lease_token")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    LEASE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    group: _rollout_pb2.RolloutGroup
    lease_token: str
    def __init__(self, group: _Optional[_Union[_rollout_pb2.RolloutGroup, _Mapping]] = ..., lease_token: _Optional[str] = ...) -> None: ...

class RolloutIngestServiceSubmitResponse(_message.Message):
    __slots__ = ("outcome", "group_id", "reason")
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    GROUP_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    outcome: SubmitOutcome
    group_id: str
    reason: str
    def __init__(self, outcome: _Optional[_Union[SubmitOutcome, str]] = ..., group_id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class RolloutIngestServiceSubmitManyRequest(_message.Message):
    __slots__ = ("group",)
    GROUP_FIELD_NUMBER: _ClassVar[int]
    group: _rollout_pb2.RolloutGroup
    def __init__(self, group: _Optional[_Union[_rollout_pb2.RolloutGroup, _Mapping]] = ...) -> None: ...

class RolloutIngestServiceSubmitManyResponse(_message.Message):
    __slots__ = ("num_appended", "num_duplicates", "num_refused", "refused")
    NUM_APPENDED_FIELD_NUMBER: _ClassVar[int]
    NUM_DUPLICATES_FIELD_NUMBER: _ClassVar[int]
    NUM_REFUSED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    num_appended: int
    num_duplicates: int
    num_refused: int
    refused: _containers.RepeatedCompositeFieldContainer[RolloutIngestServiceSubmitResponse]
    def __init__(self, num_appended: _Optional[int] = ..., num_duplicates: _Optional[int] = ..., num_refused: _Optional[int] = ..., refused: _Optional[_Iterable[_Union[RolloutIngestServiceSubmitResponse, _Mapping]]] = ...) -> None: ...

class RolloutIngestServiceGetWorkRequest(_message.Message):
    __slots__ = ("wait_seconds", "policy_step")
    WAIT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    POLICY_STEP_FIELD_NUMBER: _ClassVar[int]
    wait_seconds: float
    policy_step: int
    def __init__(self, wait_seconds: _Optional[float] = ..., policy_step: _Optional[int] = ...) -> None: ...

class RolloutIngestServiceGetWorkResponse(_message.Message):
    __slots__ = ("group_id", "lease_token", "expires_in_seconds", "prompt", "messages_json", "group_size", "refusal", "retry_after_seconds")
    GROUP_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_IN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_JSON_FIELD_NUMBER: _ClassVar[int]
    GROUP_SIZE_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_SECONDS_FIELD_NUMBER: _ClassVar[int]
    group_id: str
    lease_token: str
    expires_in_seconds: float
    prompt: _rollout_pb2.Prompt
    messages_json: str
    group_size: int
    refusal: str
    retry_after_seconds: float
    def __init__(self, group_id: _Optional[str] = ..., lease_token: _Optional[str] = ..., expires_in_seconds: _Optional[float] = ..., prompt: _Optional[_Union[_rollout_pb2.Prompt, _Mapping]] = ..., messages_json: _Optional[str] = ..., group_size: _Optional[int] = ..., refusal: _Optional[str] = ..., retry_after_seconds: _Optional[float] = ...) -> None: ...

class RolloutIngestServiceRenewWorkRequest(_message.Message):
    __slots__ = ("lease_tokens", "handed_back")
    LEASE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    HANDED_BACK_FIELD_NUMBER: _ClassVar[int]
    lease_tokens: _containers.RepeatedScalarFieldContainer[str]
    handed_back: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, lease_tokens: _Optional[_Iterable[str]] = ..., handed_back: _Optional[_Iterable[str]] = ...) -> None: ...

class RolloutIngestServiceRenewWorkResponse(_message.Message):
    __slots__ = ("lost",)
    LOST_FIELD_NUMBER: _ClassVar[int]
    lost: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, lost: _Optional[_Iterable[str]] = ...) -> None: ...

class RolloutIngestServiceWatchPolicyRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RolloutIngestServiceWatchPolicyResponse(_message.Message):
    __slots__ = ("policy",)
    POLICY_FIELD_NUMBER: _ClassVar[int]
    policy: _checkpoint_pb2.PolicyAnnouncement
    def __init__(self, policy: _Optional[_Union[_checkpoint_pb2.PolicyAnnouncement, _Mapping]] = ...) -> None: ...
