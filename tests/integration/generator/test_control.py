"""HTTP and gRPC of a generator, over real sockets."""

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

import grpc
import httpx
import pytest
from asympo.common.errors import BadSetting
from asympo.v1 import generator_service_pb2 as messages
from asympo.v1 import rollout_pb2
from asympo.v1.generator_service_pb2_grpc import GeneratorServiceStub
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.integration.generator.harness import LearnerSide, Running, running, settings_for, start, until
from tests.integration.generator.scripted_engine import ScriptedEngine

pytestmark = pytest.mark.asyncio


def rpc_target(gen: Running) -> str:
    return f"127.0.0.1:{gen.process.rpc.port}"


async def get(gen: Running, path: str) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False) as client:
        return await client.get(f"http://127.0.0.1:{gen.process.http_port}{path}")


async def test_http_tells_alive_from_ready(learner: LearnerSide) -> None:
    async with running(settings_for(learner)) as gen:
        await until(lambda: gen.process.http_port)
        assert (await get(gen, "/livez")).status_code == 200
        early = await get(gen, "/readyz")
        assert (early.status_code, early.text) == (503, "the engine is not loaded yet")
        learner.create().publish(0, nll=2.0)
        await until(lambda: learner.groups())
        await until(lambda: gen.generator.is_broker_answering)
        assert (await get(gen, "/readyz")).text == "ok"
        status = (await get(gen, "/v1/status")).json()
        assert status["policy_step"] == 0
        assert status["run"] == learner.run
        metrics = (await get(gen, "/metrics")).text
        assert 'asympo_generator_groups_total{outcome="appended"}' in metrics
        assert "asympo_generator_policy_step 0.0" in metrics


async def test_grpc_pauses_resumes_and_reports(learner: LearnerSide) -> None:
    learner.create().publish(0, nll=2.0)
    async with running(settings_for(learner)) as gen:
        await until(lambda: len(learner.groups()) == learner.config.capacity)
        async with grpc.aio.insecure_channel(rpc_target(gen)) as channel:
            stub = GeneratorServiceStub(channel)
            paused = await stub.Pause(messages.GeneratorServicePauseRequest(reason="test"))
            assert paused.state == messages.GENERATOR_STATE_PAUSED
            await until(lambda: gen.status["groups_in_flight"] == 0)
            learner.free_all()
            # Nothing tells of work that is not asked for: only time would show it.
            await asyncio.sleep(0.4)
            num_paused = len(learner.groups())
            # One request for work may have been under way when the pause came.
            assert num_paused <= learner.config.capacity + 1
            resumed = await stub.Resume(messages.GeneratorServiceResumeRequest())
            assert resumed.state == messages.GENERATOR_STATE_GENERATING
            await until(lambda: len(learner.groups()) > num_paused)
            status = await stub.Status(messages.GeneratorServiceStatusRequest())
            assert (status.run, status.holder, status.policy_step) == (learner.run, "generator-a", 0)
            health = health_pb2_grpc.HealthStub(channel)
            answer = await health.Check(health_pb2.HealthCheckRequest(service="asympo.v1.GeneratorService"))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_grpc_drain_answers_and_then_the_process_ends(learner: LearnerSide) -> None:
    learner.create().publish(0, nll=2.0)
    engine = ScriptedEngine()
    engine.flowing.clear()
    gen = start(settings_for(learner), engine)
    await until(lambda: len(engine.in_flight) == 2)
    async with grpc.aio.insecure_channel(rpc_target(gen)) as channel:
        stub = GeneratorServiceStub(channel)
        answer = await stub.Drain(messages.GeneratorServiceDrainRequest(deadline_seconds=0.0))
        assert (answer.num_groups_appended, answer.num_groups_handed_back) == (0, 2)
    await asyncio.wait_for(gen.task, 40)
    assert learner.run_log.stats.read().leases == 0


async def test_grpc_generates_outside_the_log_and_names_the_policy(
    make_learner: Callable[..., LearnerSide], caplog: pytest.LogCaptureFixture
) -> None:
    learner = make_learner(sampling={"temperature": 1.0, "max_tokens": 8, "min_tokens": 6})
    learner.create().publish(4, nll=2.0)
    engine = ScriptedEngine()
    engine.context_length = 20
    async with running(settings_for(learner), engine) as gen:
        await until(lambda: gen.status["policy_step"] == 4)
        async with grpc.aio.insecure_channel(rpc_target(gen)) as channel:
            stub = GeneratorServiceStub(channel)
            prompts = [rollout_pb2.Prompt(token_ids=[5, 6]), rollout_pb2.Prompt(text="What is 3 + 4?")]
            sampling = messages.Sampling(temperature=0.0, max_tokens=4)
            answer = await stub.Generate(
                messages.GeneratorServiceGenerateRequest(prompts=prompts, num_samples=2, sampling=sampling)
            )
            assert [[r.text for r in group.responses] for group in answer.groups] == [["7", "8"]] * 2
            assert answer.groups[0].responses[0].finish_reason == rollout_pb2.FINISH_REASON_STOP
            assert (answer.policy_step, answer.last_policy_step) == (4, 4)
            # The worker samples beside it.
            asked = next(each for each in engine.sampled_with if each.temperature == 0)
            assert asked.min_tokens == 4, "the run's own, 6, is more than was asked for"
            request = messages.GeneratorServiceGenerateRequest(prompts=prompts)
            request.sampling.min_tokens = 0
            await stub.Generate(request)
            assert (0, 8) in [(each.min_tokens, each.max_tokens) for each in engine.sampled_with]
            request.sampling.min_tokens = 9
            with pytest.raises(grpc.aio.AioRpcError, match="min_tokens is 9: give at most max_tokens, 8"):
                await stub.Generate(request)
    assert "sampling.max_tokens is 8, but the engine serves 20 in a row" in caplog.text


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (messages.GeneratorServiceGenerateRequest(), "there are 0 prompts"),
        (
            messages.GeneratorServiceGenerateRequest(
                prompts=[rollout_pb2.Prompt(text="x")], sampling=messages.Sampling(top_p=0.0)
            ),
            "top_p is 0.0",
        ),
        (messages.GeneratorServiceGenerateRequest(prompts=[rollout_pb2.Prompt()]), "a prompt is empty"),
        (
            messages.GeneratorServiceGenerateRequest(prompts=[rollout_pb2.Prompt(text="x" * 300_000)]),
            "a prompt has 300000 characters",
        ),
    ],
)
async def test_grpc_refuses_bad_requests(
    learner: LearnerSide, request_: messages.GeneratorServiceGenerateRequest, words: str
) -> None:
    learner.create().publish(0, nll=2.0)
    async with running(settings_for(learner)) as gen:
        await until(lambda: gen.status["policy_step"] == 0)
        async with grpc.aio.insecure_channel(rpc_target(gen)) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await GeneratorServiceStub(channel).Generate(request_)
            assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert words in str(error.value.details())


async def test_grpc_says_unavailable_before_the_engine_serves(learner: LearnerSide) -> None:
    async with running(settings_for(learner)) as gen:
        await until(lambda: gen.process.http_port)
        async with grpc.aio.insecure_channel(rpc_target(gen)) as channel:
            request = messages.GeneratorServiceGenerateRequest(prompts=[rollout_pb2.Prompt(text="x")])
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await GeneratorServiceStub(channel).Generate(request)
            assert error.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_grpc_serves_on_a_unix_socket(learner: LearnerSide, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/control.sock"
    async with running(settings_for(learner, grpc_host=address)) as gen:
        await until(lambda: gen.process.http_port)
        async with grpc.aio.insecure_channel(address) as channel:
            status = await GeneratorServiceStub(channel).Status(messages.GeneratorServiceStatusRequest())
            assert status.state == messages.GENERATOR_STATE_STARTING


@pytest.mark.parametrize("name", ["http_port", "grpc_port"])
async def test_busy_port_is_one_clear_sentence(learner: LearnerSide, name: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        gen = start(settings_for(learner, **{name: taken.getsockname()[1]}))
        with pytest.raises(BadSetting, match=f"cannot listen on 127.0.0.1:.*choose another .* {name}"):
            await asyncio.wait_for(gen.task, 40)
