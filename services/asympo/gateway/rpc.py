"""gRPC of a gateway: ingest, health, reflection when debugging."""

import asyncio
import functools
import logging
from collections.abc import AsyncIterator

import grpc

from asympo.common.control.server import ControlServer
from asympo.common.control.settings import ControlSettings
from asympo.common.errors import AsympoError
from asympo.common.rollout_log import Submitted
from asympo.gateway.core import UNAVAILABLE, Answer, Gateway, NotJoined, answer_of
from asympo.gateway.metrics import GatewayMetrics
from asympo.gateway.producers import NotAllowed, Producer, Producers, Scope
from asympo.gateway.work import Granted
from asympo.v1 import checkpoint_pb2, rollout_pb2
from asympo.v1 import rollout_ingest_service_pb2 as messages
from asympo.v1.rollout_ingest_service_pb2_grpc import (
    RolloutIngestServiceServicer,
    add_RolloutIngestServiceServicer_to_server,
)

log = logging.getLogger(__name__)

SERVICE_NAME = "asympo.v1.RolloutIngestService"
METHODS = ("Submit", "SubmitMany", "GetWork", "RenewWork", "WatchPolicy")
MAX_REFUSED_SHOWN = 1000
MAX_WAIT_SECONDS = 60.0

_DONE = {"appended", "duplicate"}


class IngestRpc(RolloutIngestServiceServicer):
    """Translates between messages and the one core object."""

    def __init__(
        self, *, gateway: Gateway, producers: Producers, metrics: GatewayMetrics, slot_wait_seconds: float
    ) -> None:
        self._gateway = gateway
        self._producers = producers
        self._metrics = metrics
        self._slot_wait_seconds = slot_wait_seconds

    async def Submit(
        self, request: messages.RolloutIngestServiceSubmitRequest, context: grpc.aio.ServicerContext
    ) -> messages.RolloutIngestServiceSubmitResponse:
        producer = await self._admit(context, Scope.SUBMIT)
        try:
            answer = await self._gateway.submit(
                producer,
                request.group,
                lease_token=request.lease_token,
                wait_seconds=self._slot_wait_seconds,
            )
        except UNAVAILABLE as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        return _response(answer)

    async def SubmitMany(
        self,
        requests: AsyncIterator[messages.RolloutIngestServiceSubmitManyRequest],
        context: grpc.aio.ServicerContext,
    ) -> messages.RolloutIngestServiceSubmitManyResponse:
        producer = await self._admit(context, Scope.SUBMIT)
        total = messages.RolloutIngestServiceSubmitManyResponse()
        pending: set[asyncio.Future[Submitted]] = set()

        def settle(group: rollout_pb2.RolloutGroup, answer: "asyncio.Future[Submitted]") -> None:
            pending.discard(answer)
            if not answer.cancelled() and answer.exception() is None:
                _add(total, answer_of(answer.result(), group.group_id))

        try:
            async for request in requests:
                group = request.group
                answer = await self._gateway.enqueue(producer, group, wait_seconds=None)
                if isinstance(answer, Answer):
                    _add(total, answer)
                    continue
                pending.add(answer)
                answer.add_done_callback(functools.partial(settle, group))
            if pending:
                await asyncio.gather(*pending)
                # The callbacks of the last ones run after whoever waited for them.
                await asyncio.sleep(0)
        except UNAVAILABLE as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        finally:
            # The caller went away: what is not in the log yet is dropped, and sent again by it.
            for answer in tuple(pending):
                answer.cancel()
        return total

    async def GetWork(
        self, request: messages.RolloutIngestServiceGetWorkRequest, context: grpc.aio.ServicerContext
    ) -> messages.RolloutIngestServiceGetWorkResponse:
        producer = await self._admit(context, Scope.WORK)
        if not 0 <= request.wait_seconds <= MAX_WAIT_SECONDS:
            sentence = f"wait_seconds is {request.wait_seconds}: give 0 to {MAX_WAIT_SECONDS:.0f}"
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, sentence)
        step = request.policy_step if request.HasField("policy_step") else None
        try:
            found = await self._gateway.get_work(
                producer, wait_seconds=request.wait_seconds, policy_step=step
            )
        except UNAVAILABLE as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        except AsympoError as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        if not isinstance(found, Granted):
            return messages.RolloutIngestServiceGetWorkResponse(
                refusal=found.reason, retry_after_seconds=found.retry_after_seconds
            )
        return messages.RolloutIngestServiceGetWorkResponse(
            group_id=found.lease.group_id,
            lease_token=found.lease.token,
            expires_in_seconds=found.lease.expires_in_seconds,
            prompt=rollout_pb2.Prompt(token_ids=found.token_ids, text=found.text),
            messages_json=found.messages_json,
            group_size=self._gateway.parts.config.group_size,
        )

    async def RenewWork(
        self, request: messages.RolloutIngestServiceRenewWorkRequest, context: grpc.aio.ServicerContext
    ) -> messages.RolloutIngestServiceRenewWorkResponse:
        producer = await self._admit(context, Scope.WORK)
        try:
            lost = await self._gateway.renew_work(
                producer, keep=list(request.lease_tokens), hand_back=list(request.handed_back)
            )
        except UNAVAILABLE as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        return messages.RolloutIngestServiceRenewWorkResponse(lost=lost)

    async def WatchPolicy(
        self, request: messages.RolloutIngestServiceWatchPolicyRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[messages.RolloutIngestServiceWatchPolicyResponse]:
        await self._admit(context, Scope.WATCH)
        try:
            async for policy in self._gateway.watch_policy():
                yield messages.RolloutIngestServiceWatchPolicyResponse(
                    policy=checkpoint_pb2.PolicyAnnouncement(
                        step=policy.step, fence=policy.fence, manifest_digest=policy.digest
                    )
                )
        except NotJoined as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))

    async def _admit(self, context: grpc.aio.ServicerContext, scope: Scope) -> Producer:
        metadata = dict(context.invocation_metadata() or ())
        try:
            return self._producers.admit(str(metadata.get("authorization", "")), scope)
        except NotAllowed as error:
            self._metrics.count_refused_call()
            kinds = grpc.StatusCode
            await context.abort(
                kinds.PERMISSION_DENIED if error.is_known else kinds.UNAUTHENTICATED, str(error)
            )
            raise


def _response(answer: Answer) -> messages.RolloutIngestServiceSubmitResponse:
    return messages.RolloutIngestServiceSubmitResponse(
        outcome=f"SUBMIT_OUTCOME_{answer.outcome.upper()}", group_id=answer.group_id, reason=answer.reason
    )


def _add(total: messages.RolloutIngestServiceSubmitManyResponse, answer: Answer) -> None:
    total.num_appended += answer.outcome == "appended"
    total.num_duplicates += answer.outcome == "duplicate"
    if answer.outcome not in _DONE:
        total.num_refused += 1
        if len(total.refused) < MAX_REFUSED_SHOWN:
            total.refused.append(_response(answer))


def control_server(service: IngestRpc, *, settings: ControlSettings, max_message_bytes: int) -> ControlServer:
    """The gateway's gRPC server, not yet started."""
    return ControlServer(
        name=SERVICE_NAME,
        add=lambda server: add_RolloutIngestServiceServicer_to_server(service, server),
        # Whoever shows a certificate of ours may call everything: what for is said by its token.
        viewing=tuple(f"/{SERVICE_NAME}/{method}" for method in METHODS),
        settings=settings,
        max_message_bytes=max_message_bytes,
    )
