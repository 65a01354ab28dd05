from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class PolicyAnnouncement(_message.Message):
    __slots__ = ("step", "fence", "manifest_digest")
    STEP_FIELD_NUMBER: _ClassVar[int]
    FENCE_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_DIGEST_FIELD_NUMBER: _ClassVar[int]
    step: int
    fence: int
    manifest_digest: str
    def __init__(self, step: _Optional[int] = ..., fence: _Optional[int] = ..., manifest_digest: _Optional[str] = ...) -> None: ...
