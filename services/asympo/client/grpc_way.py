"""Through a gateway's gRPC: the quickest way for many groups."""

from collections.abc import AsyncIterable, AsyncIterator, Iterable
from urllib.parse import urlsplit

import grpc

from asympo.client.ways import RETRIED, Outcome, Patience, ProducerRefused, Unreachable, checked, each
from asympo.common.codec import to_message
from asympo.common.proxies import DIRECT_CHANNEL, is_own
from asympo.common.records import RolloutGroup
from asympo.v1 import rollout_ingest_service_pb2 as messages
from asympo.v1.rollout_ingest_service_pb2_grpc import RolloutIngestServiceStub

_AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
"""CANCELLED is what gRPC's own server says when a thousand calls wait for it; we cancel none ourselves."""


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
        patience = Patience(max_wait_seconds)
        request = messages.RolloutIngestServiceSubmitRequest(group=to_message(group))
        while True:
            try:
                outcome = _outcome(await self._stub.Submit(request, metadata=self._metadata))
                why = outcome.outcome
                if outcome.outcome not in RETRIED:
                    return checked(outcome)
            except grpc.aio.AioRpcError as error:
                why = str(_translated(error))
            await patience.pause(why)

    async def submit_many(
        self, groups: Iterable[RolloutGroup] | AsyncIterable[RolloutGroup], *, max_wait_seconds: float
    ) -> list[Outcome]:
        """All groups in one stream. Raises Unreachable when it breaks: send all of them again."""

        async def requests() -> AsyncIterator[messages.RolloutIngestServiceSubmitManyRequest]:
            async for group in each(groups):
                yield messages.RolloutIngestServiceSubmitManyRequest(group=to_message(group))

        try:
            total = await self._stub.SubmitMany(requests(), metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise _translated(error) from error
        return [_outcome(each_refused) for each_refused in total.refused]

    async def close(self) -> None:
        """Ends the channel."""
        await self._channel.close()


def _outcome(answer: messages.RolloutIngestServiceSubmitResponse) -> Outcome:
    name = messages.SubmitOutcome.Name(answer.outcome).removeprefix("SUBMIT_OUTCOME_").lower()
    return Outcome(group_id=answer.group_id, outcome=name, reason=answer.reason)


def _translated(error: grpc.aio.AioRpcError) -> Unreachable:
    """Raises ProducerRefused when asking again cannot help."""
    if error.code() in _AGAIN:
        return Unreachable(f"the gateway does not answer: {error.details()}")
    raise ProducerRefused(f"the gateway refuses the call: {error.details()}") from error
