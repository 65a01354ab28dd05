"""Doors on the network: HTTP and gRPC of learner, generator and gateway."""

import asyncio
import contextlib
import json
from collections.abc import Mapping
from urllib.parse import quote

import grpc

from asympo.chaos.hostile.doors import Door, Misbehaved, in_short
from asympo.chaos.hostile.garbage import LARGE_BYTES, Garbage
from asympo.v1 import generator_service_pb2, learner_service_pb2, rollout_ingest_service_pb2, rollout_pb2

_ANSWER_SECONDS = 20.0
"""Within which whatever was asked has to be answered, on a busy machine."""
_SILENCE_SECONDS = 0.5
_PATHS = {
    "learner": (
        "/",
        "/page/",
        "/v1/status",
        "/v1/history?after=",
        "/v1/samples?limit=",
        "/metrics",
        "/livez",
    ),
    "generator": ("/v1/status", "/metrics", "/readyz", "/"),
    "gateway": ("/v1/rollouts", "/v1/work", "/v1/work/renew", "/v1/policy", "/metrics"),
}
_REASON_CHARS = 3_000_000
_BROKEN = {grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED}


class HttpDoor:
    """One HTTP server, spoken to over bare sockets, since no client would send what it sends."""

    def __init__(self, *, service: str, port: int) -> None:
        self._service, self._port = service, port

    @property
    def door(self) -> Door:
        return Door(name=f"{self._service} http", put=self._put)

    async def _put(self, garbage: Garbage) -> str:
        rng = garbage.rng
        kind = rng.randrange(4)
        if kind == 0:
            request = garbage.data()
        elif kind == 1:
            request = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"X: " + garbage.data()
        else:
            request = self._request(garbage)
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                try:
                    return await _answer(reader, writer, request, is_whole=kind > 1)
                finally:
                    writer.close()
        except TimeoutError:
            raise Misbehaved(f"{self._service} did not answer over HTTP in {_ANSWER_SECONDS:g} s") from None
        except OSError as error:
            return f"closed: {in_short(error.strerror)}"

    def _request(self, garbage: Garbage) -> bytes:
        rng = garbage.rng
        method = rng.choice(("GET", "POST", "POST", "PUT", "DELETE", "OPTIONS"))
        path = rng.choice(_PATHS[self._service])
        if rng.random() < 0.4:
            path += quote(garbage.text()[:500].encode(errors="surrogatepass"))
        host = rng.choice(("127.0.0.1", "localhost", "evil.example", "[::1", quote(garbage.text()[:200])))
        body = garbage.document() if rng.random() < 0.5 else json.dumps(_body(garbage)).encode()
        token = quote(garbage.text()[:300])
        head = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        return head.encode() + body


async def _answer(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes, *, is_whole: bool
) -> str:
    writer.write(request)
    # A server may answer and close before it has read all of it.
    with contextlib.suppress(ConnectionError):
        await writer.drain()
    if is_whole:
        line = await reader.readline()
    else:
        try:
            async with asyncio.timeout(_SILENCE_SECONDS):
                line = await reader.readline()
        except TimeoutError:
            return "waits for more"
    if not line:
        return "closed"
    status = line.split(b" ")[1:2]
    if status in ([b"500"], []):
        raise Misbehaved(f"it answered {line[:80]!r} to {request[:200]!r}")
    return f"status {status[0].decode(errors='replace')}"


def _body(garbage: Garbage) -> object:
    """What a producer might send to a gateway, with something wrong in it."""
    rng = garbage.rng
    responses = [
        {"text": garbage.text()[:3000], "reward": value} for value in (0, garbage.text()[:99], None, 1e308)
    ]
    group = {
        "group_id": rng.choice((rng.randrange(10**6), garbage.text()[:999], None, 2**70)),
        "prompt": rng.choice(
            (garbage.text()[:3000], {"token_ids": [2**40]}, {"messages": [{"role": "x"}]}, [])
        ),
        "responses": rng.sample(responses, rng.randrange(len(responses))),
        "lease_token": "forged" + garbage.text()[:99],
    }
    return rng.choice(
        (
            group,
            {"groups": [group] * 3},
            {"wait_seconds": -1},
            {"lease_tokens": [garbage.text()]},
            {"groups": {}},
        )
    )


class GrpcDoor:
    """One gRPC server. Calls that anybody who may come in may make with effect (pause) are undone."""

    def __init__(self, *, service: str, port: int) -> None:
        self._service, self._address = service, f"127.0.0.1:{port}"

    @property
    def door(self) -> Door:
        return Door(name=f"{self._service} grpc", put=self._put)

    async def _put(self, garbage: Garbage) -> str:
        options = (("grpc.max_send_message_length", -1), ("grpc.max_metadata_size", LARGE_BYTES))
        async with grpc.aio.insecure_channel(self._address, options=options) as channel:
            if garbage.rng.random() < 0.1 and self._service != "gateway":
                return await self._pause(channel, garbage)
            method, request = _call(self._service, garbage)
            return f"{method}: {await self._ask(channel, method, request, garbage)}"

    async def _pause(self, channel: grpc.aio.Channel, garbage: Garbage) -> str:
        kinds = learner_service_pb2 if self._service == "learner" else generator_service_pb2
        name = self._service.capitalize()
        text = _utf8(garbage.text()) or "x"
        reason = text * (_REASON_CHARS // len(text) + 1)
        request = getattr(kinds, f"{name}ServicePauseRequest")(reason=reason[:_REASON_CHARS])
        said = await self._ask(channel, "Pause", request.SerializeToString(), garbage)
        await self._ask(channel, "Resume", b"", garbage)
        return f"Pause: {said}"

    async def _ask(self, channel: grpc.aio.Channel, method: str, request: bytes, garbage: Garbage) -> str:
        names = {
            "learner": "LearnerService",
            "generator": "GeneratorService",
            "gateway": "RolloutIngestService",
        }
        path = f"/asympo.v1.{names[self._service]}/{method}"
        metadata = (("authorization", quote(garbage.text()[:300])),)
        try:
            if method in ("WatchCheckpoints", "WatchPolicy"):
                stream = channel.unary_stream(path)(request, timeout=_ANSWER_SECONDS, metadata=metadata)
                await stream.read()
                stream.cancel()
            elif method == "SubmitMany":
                await channel.stream_unary(path)(
                    iter([request] * 3), timeout=_ANSWER_SECONDS, metadata=metadata
                )
            else:
                await channel.unary_unary(path)(request, timeout=_ANSWER_SECONDS, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            if error.code() in _BROKEN:
                raise Misbehaved(
                    f"{self._service} answered {method} with {error.code().name}: {in_short(error.details())}"
                ) from None
            return error.code().name.lower()
        return "answered"


def _call(service: str, garbage: Garbage) -> tuple[str, bytes]:
    """A method and its request: bytes of any kind, or a message that is nearly right."""
    rng = garbage.rng
    if rng.random() < 0.1:
        return "Nothing", garbage.data()
    known: Mapping[str, tuple[str, ...]] = {
        "learner": ("Status", "WatchCheckpoints"),
        "generator": ("Status", "Generate", "Generate", "Generate"),
        "gateway": ("Submit", "Submit", "SubmitMany", "GetWork", "RenewWork", "WatchPolicy"),
    }
    method = rng.choice(known[service])
    if rng.random() < 0.5:
        return method, garbage.data()
    messages = rollout_ingest_service_pb2
    if method in ("Submit", "SubmitMany"):
        group = rollout_pb2.RolloutGroup()
        with contextlib.suppress(Exception):
            group.ParseFromString(garbage.record(f"{rng.randrange(10**6)}", is_leased=False)[1])
        kind = getattr(messages, f"RolloutIngestService{method}Request")
        return method, kind(group=group).SerializeToString()
    if method == "GetWork":
        wait = rng.choice((0.0, -1.0, float("nan"), float("inf"), 1e300))
        return method, messages.RolloutIngestServiceGetWorkRequest(
            wait_seconds=wait, policy_step=rng.randrange(2**63)
        ).SerializeToString()
    if method == "RenewWork":
        tokens = [_utf8(garbage.text()) for _ in range(rng.randrange(50))]
        return method, messages.RolloutIngestServiceRenewWorkRequest(lease_tokens=tokens).SerializeToString()
    if method == "Generate":
        return method, _generate(garbage).SerializeToString()
    return method, garbage.data()


def _generate(garbage: Garbage) -> generator_service_pb2.GeneratorServiceGenerateRequest:
    rng, messages = garbage.rng, generator_service_pb2
    prompts = [
        rollout_pb2.Prompt(
            text=_utf8(garbage.text()) * rng.choice((1, 10)),
            token_ids=[rng.choice((5, 511, 512, 2**32 - 1))] * rng.choice((0, 0, 3, 5_000)),
        )
        for _ in range(rng.choice((0, 1, 2, 1_100)))
    ]
    sampling = messages.Sampling(
        temperature=rng.choice((float("nan"), -1.0, 1e300, 1.0)),
        top_p=rng.choice((float("inf"), 0.0, 0.5)),
        max_tokens=rng.choice((0, 1, 2**32 - 1)),
        stop=[_utf8(garbage.text()) for _ in range(rng.randrange(3))],
    )
    return messages.GeneratorServiceGenerateRequest(
        prompts=prompts, num_samples=rng.choice((0, 1, 2**32 - 1)), sampling=sampling
    )


def _utf8(text: str) -> str:
    return text.encode(errors="replace").decode()
