"""Through a gateway's gRPC: the quickest way for many groups."""

from collections.abc import AsyncIterable, Iterable
from urllib.parse import urlsplit

import grpc

from asympo.client.outbox import send_all
from asympo.client.ways import (
    CALL_SECONDS,
    RETRIED,
    Outcome,
    Patience,
    ProducerRefused,
    Unreachable,
    checked,
    refusal,
)
from asympo.common.codec import to_message
from asympo.common.errors import InvalidRecord
from asympo.common.proxies import DIRECT_CHANNEL, is_own
from asympo.common.records import RolloutGroup
from asympo.v1 import rollout_ingest_service_pb2 as messages
from asympo.v1.rollout_ingest_service_pb2_grpc import RolloutIngestServiceStub

_AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
"""CANCELLED is what gRPC's own server says when a thousand calls wait for it; we cancel none ourselves."""

MAX_GROUPS = 512
"""Of one stream: the gateway names at most 1,000 that it refuses."""


class GrpcWay:
    """One channel."""

    def __init__(self, address: str, *, token: str) -> None:
        parts = urlsplit(address)
        options = (("grpc.max_send_message_length", -1), *(DIRECT_CHANNEL if is_own(address) else ()))
        if parts.scheme == "grpcs":
            self._channel = grpc.aio.secure_channel(parts.netloc, grpc.ssl_channel_credentials(), options)
        else:
            self._channel = grpc.aio.insecure_channel(parts.netloc, options)
        self._stub = RolloutIngestServiceStub(self._channel)
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()

    async def submit(self, group: RolloutGroup, *, max_wait_seconds: float) -> Outcome:
        """One group, sent until it has a final answer."""
        try:
            request = messages.RolloutIngestServiceSubmitRequest(group=to_message(group))
        except InvalidRecord as error:
            return checked(refusal(group, error))
        return checked(await self._submit(request, Patience(max_wait_seconds)))

    async def submit_many(
        self, groups: Iterable[RolloutGroup] | AsyncIterable[RolloutGroup], *, max_wait_seconds: float
    ) -> list[Outcome]:
        """Many groups, a stream for some hundreds of them."""

        async def send(requests: list[messages.RolloutIngestServiceSubmitManyRequest]) -> list[Outcome]:
            return await self._stream(requests, max_wait_seconds)

        return await send_all(
            groups, encode=_streamed, send=send, num_bytes=_num_bytes, max_groups=MAX_GROUPS
        )

    async def _stream(
        self, requests: list[messages.RolloutIngestServiceSubmitManyRequest], max_wait_seconds: float
    ) -> list[Outcome]:
        """One stream; the outcomes of those that were not taken."""
        try:
            total = await self._stub.SubmitMany(
                requests, metadata=self._metadata, timeout=min(CALL_SECONDS, max_wait_seconds)
            )
        except grpc.aio.AioRpcError as error:
            _translated(error)
            return await self._one_by_one(requests, max_wait_seconds)
        return [_outcome(answer) for answer in total.refused]

    async def _one_by_one(
        self, requests: list[messages.RolloutIngestServiceSubmitManyRequest], max_wait_seconds: float
    ) -> list[Outcome]:
        """What a stream that broke, or took too long, did not say: which of its groups are in the log."""
        return [
            await self._submit(
                messages.RolloutIngestServiceSubmitRequest(group=each.group), Patience(max_wait_seconds)
            )
            for each in requests
        ]

    async def _submit(
        self, request: messages.RolloutIngestServiceSubmitRequest, patience: Patience
    ) -> Outcome:
        while True:
            try:
                outcome = _outcome(
                    await self._stub.Submit(request, metadata=self._metadata, timeout=CALL_SECONDS)
                )
                why = outcome.outcome
                if outcome.outcome not in RETRIED:
                    return outcome
            except grpc.aio.AioRpcError as error:
                why = str(_translated(error))
            await patience.pause(why)

    async def close(self) -> None:
        """Ends the channel."""
        await self._channel.close()


def _streamed(group: RolloutGroup) -> messages.RolloutIngestServiceSubmitManyRequest:
    return messages.RolloutIngestServiceSubmitManyRequest(group=to_message(group))


def _num_bytes(request: messages.RolloutIngestServiceSubmitManyRequest) -> int:
    return request.ByteSize()


def _outcome(answer: messages.RolloutIngestServiceSubmitResponse) -> Outcome:
    name = messages.SubmitOutcome.Name(answer.outcome).removeprefix("SUBMIT_OUTCOME_").lower()
    return Outcome(group_id=answer.group_id, outcome=name, reason=answer.reason)


def _translated(error: grpc.aio.AioRpcError) -> Unreachable:
    """Raises ProducerRefused when asking again cannot help."""
    if error.code() in _AGAIN:
        return Unreachable(f"the gateway does not answer: {error.details()}")
    raise ProducerRefused(f"the gateway refuses the call: {error.details()}") from error
