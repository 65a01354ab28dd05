"""What a producer needs to feed a run: no torch, no engine, nothing of ours running beside it.

    from asympo.client import Client

    with Client("http://127.0.0.1:8090", token="…") as client:
        client.submit("What is 2 + 2?", [("4", 1.0), ("5", 0.0)])

`AsyncClient` is the same with `await`. An address may be a gateway's over HTTP (`http://`, `https://`) or
gRPC (`grpc://`, `grpcs://`), or the broker itself (`redis://…` with `run`). Whatever is sent again is
appended once: every group has an id that is made when the client first sees it.
"""

from asympo.client.blocking import Client, ClientUnusable
from asympo.client.client import AsyncClient
from asympo.client.groups import new_id, text_group
from asympo.client.ways import Outcome
from asympo.common.records import FinishReason, Prompt, Response, RolloutGroup

__all__ = [
    "AsyncClient",
    "Client",
    "ClientUnusable",
    "FinishReason",
    "Outcome",
    "Prompt",
    "Response",
    "RolloutGroup",
    "new_id",
    "text_group",
]
