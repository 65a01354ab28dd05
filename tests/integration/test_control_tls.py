"""Control services beyond loopback: certificates (the guide's own), roles, rotation."""

import asyncio
import logging
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
from asympo.common.clock import SystemClock
from asympo.common.control.settings import TlsFiles
from asympo.common.errors import BadSetting
from asympo.common.lifecycle import StopSignal
from asympo.common.telemetry import new_registry
from asympo.generator import rpc as generator_rpc
from asympo.generator.core import Generator
from asympo.generator.metrics import GeneratorMetrics
from asympo.generator.settings import GeneratorSettings
from asympo.learner.control import LearnerControl
from asympo.learner.servers import grpc as learner_rpc
from asympo.learner.settings import LearnerSettings
from asympo.v1 import generator_service_pb2, learner_service_pb2
from asympo.v1.generator_service_pb2_grpc import GeneratorServiceStub
from asympo.v1.learner_service_pb2_grpc import LearnerServiceStub
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tests.conftest import require

ROOT = Path(__file__).resolve().parents[2]
SECTION = (ROOT / "docs/operations.md").read_text().split("## Control by certificates")[1]
TIMEOUT_SECONDS = 10
PAUSE = learner_service_pb2.LearnerServicePauseRequest(reason="test")
STATUS = learner_service_pb2.LearnerServiceStatusRequest()


def block(language: str) -> str:
    """The guide's one block of code in a language."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", SECTION, re.DOTALL)
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the guide's commands were run, and some callers that it does not have."""
    require(shutil.which("openssl") is not None, "openssl")
    path = tmp_path_factory.mktemp("certificates")
    more = "\n".join(
        f"openssl req $leaf -subj {subject!r} -keyout {name}.key -out {name}.crt"
        for name, subject in {
            "nobody": "/CN=nobody/OU=operator",
            "pretender": "/CN=x,OU=asympo:operator/O=a,OU=asympo:operator",
        }.items()
    )
    for folder, commands in ((path, block("bash") + more), (path / "other", block("bash"))):
        folder.mkdir(exist_ok=True)
        subprocess.run(["bash", "-euc", commands], cwd=folder, check=True, capture_output=True)
    return path


@pytest.fixture
def files(made: Path, tmp_path: Path) -> TlsFiles:
    """The three files of the services, of this test alone."""
    for name in ("tls.crt", "tls.key", "ca.crt"):
        shutil.copy(made / name, tmp_path)
    return TlsFiles(certificate=tmp_path / "tls.crt", key=tmp_path / "tls.key", client_ca=tmp_path / "ca.crt")


def credentials(made: Path, caller: str, *, ca: Path | None = None) -> grpc.ChannelCredentials:
    ca = ca or made / "ca.crt"
    key, certificate = (made / f"{caller}.{kind}" for kind in ("key", "crt"))
    return grpc.ssl_channel_credentials(ca.read_bytes(), key.read_bytes(), certificate.read_bytes())


@pytest.fixture
def learner(files: TlsFiles) -> Iterator[SimpleNamespace]:
    settings = LearnerSettings(grpc_host="0.0.0.0", grpc_port=0, grpc_tls=files, debug=True)
    core = LearnerControl(settings=settings, stop=StopSignal(), clock=SystemClock())
    server = learner_rpc.RpcServer(learner=core, settings=settings)
    server.start()
    yield SimpleNamespace(core=core, target=f"localhost:{server.port}")
    server.stop()


def refusal(call: grpc.UnaryUnaryMultiCallable, request: object) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as error:
        call(request, timeout=TIMEOUT_SECONDS)
    return error.value


def test_operator_may_do_everything_and_is_named_in_the_log(
    learner: SimpleNamespace, made: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with grpc.secure_channel(learner.target, credentials(made, "alice")) as channel:
        stub = LearnerServiceStub(channel)
        stub.Pause(PAUSE, timeout=TIMEOUT_SECONDS)
        assert learner.core.is_paused
        stub.Resume(learner_service_pb2.LearnerServiceResumeRequest(), timeout=TIMEOUT_SECONDS)
        assert stub.Status(STATUS, timeout=TIMEOUT_SECONDS).run == "default"
    assert "Pause is called by 'alice'" in caplog.messages
    assert not any("Status" in message for message in caplog.messages)


def test_viewer_may_look_and_not_act(learner: SimpleNamespace, made: Path) -> None:
    with grpc.secure_channel(learner.target, credentials(made, "dashboard")) as channel:
        stub = LearnerServiceStub(channel)
        assert stub.Status(STATUS, timeout=TIMEOUT_SECONDS).run == "default"
        health = HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_SECONDS)
        assert health.status == health_pb2.HealthCheckResponse.NOT_SERVING
        for call, request in (
            (stub.Pause, PAUSE),
            (stub.Resume, learner_service_pb2.LearnerServiceResumeRequest()),
            (stub.Save, learner_service_pb2.LearnerServiceSaveRequest()),
        ):
            error = refusal(call, request)
            assert error.code() is grpc.StatusCode.PERMISSION_DENIED
            assert "with OU=asympo:operator in its subject; that of 'dashboard' has OU=asympo:viewer" in (
                error.details()
            )
        # A stream begins, and waits for the first policy.
        stream = stub.WatchCheckpoints(
            learner_service_pb2.LearnerServiceWatchCheckpointsRequest(), timeout=0.3
        )
        with pytest.raises(grpc.RpcError) as ended:
            next(stream)
        assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert not learner.core.is_paused


@pytest.mark.parametrize("caller", ["nobody", "pretender"])
def test_caller_without_a_role_is_refused_everything(
    learner: SimpleNamespace, made: Path, caller: str
) -> None:
    # The common name of the pretender looks like the unit of an operator, and so does its organization.
    with grpc.secure_channel(learner.target, credentials(made, caller)) as channel:
        stub = LearnerServiceStub(channel)
        for call in (stub.Status, stub.Pause, HealthStub(channel).Check):
            error = refusal(call, STATUS if call is stub.Status else PAUSE)
            assert error.code() is grpc.StatusCode.PERMISSION_DENIED
            assert "has no role" in error.details()
        stream = stub.WatchCheckpoints(learner_service_pb2.LearnerServiceWatchCheckpointsRequest())
        with pytest.raises(grpc.RpcError) as denied:
            next(stream)
        assert denied.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert not learner.core.is_paused


def test_callers_of_another_authority_without_certificate_or_without_tls_get_nowhere(
    learner: SimpleNamespace, made: Path
) -> None:
    ca = made / "ca.crt"
    channels = (
        grpc.secure_channel(learner.target, credentials(made / "other", "alice", ca=ca)),
        # The services' own certificate is not one for callers.
        grpc.secure_channel(learner.target, credentials(made, "tls")),
        grpc.secure_channel(learner.target, grpc.ssl_channel_credentials(ca.read_bytes())),
        grpc.insecure_channel(learner.target),
    )
    for channel in channels:
        with channel:
            assert refusal(LearnerServiceStub(channel).Status, STATUS).code() is grpc.StatusCode.UNAVAILABLE


def test_rotated_files_are_used_without_a_restart_and_wrong_ones_are_not(
    learner: SimpleNamespace, made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    def status(folder: Path) -> str:
        with grpc.secure_channel(learner.target, credentials(folder, "alice")) as channel:
            return LearnerServiceStub(channel).Status(STATUS, timeout=TIMEOUT_SECONDS).run

    def put(name: str, content: bytes) -> None:
        part = tmp_path / "part"
        part.write_bytes(content)
        part.replace(tmp_path / name)

    assert status(made) == "default"
    put("tls.crt", (made / "other/tls.crt").read_bytes())
    # Half of a rotation: the key is not yet there.
    assert status(made) == status(made) == "default"
    complaints = [each for each in caplog.messages if "stay as they were" in each]
    assert len(complaints) == 1
    assert f"{tmp_path / 'tls.key'} is not the key of grpc_tls.certificate" in complaints[0]
    put("tls.key", (made / "other/tls.key").read_bytes())
    put("ca.crt", (made / "other/ca.crt").read_bytes())
    assert status(made / "other") == "default"
    assert any("have changed and are in use" in each for each in caplog.messages)
    # The old authority counts no more, even for who still trusts the new services.
    channel = grpc.secure_channel(learner.target, credentials(made, "alice", ca=made / "other/ca.crt"))
    with channel:
        assert refusal(LearnerServiceStub(channel).Status, STATUS).code() is grpc.StatusCode.UNAVAILABLE


def test_call_of_the_guide_works(
    learner: SimpleNamespace, made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(made)
    text = block("python")
    assert text.count("asympo-learner.training.svc:50051") == 1
    exec(compile(text.replace("asympo-learner.training.svc:50051", learner.target), "guide", "exec"), {})
    assert learner.core.is_paused
    assert 'run: "default"' in capsys.readouterr().out


@asynccontextmanager
async def generator_behind(files: TlsFiles) -> AsyncIterator[str]:
    """The address of a generator's control service."""
    settings = GeneratorSettings(grpc_host="0.0.0.0", grpc_port=0, grpc_tls=files, debug=True)
    metrics = GeneratorMetrics(new_registry(service="generator", version="1"))
    core = Generator(run="r", holder="h", metrics=metrics, stop=StopSignal(), drain_seconds=1.0)
    server = generator_rpc.control_server(core, settings=settings)
    await server.start()
    yield f"localhost:{server.port}"
    await server.stop()


@pytest.mark.asyncio
async def test_generator_keeps_the_same_door(files: TlsFiles, made: Path) -> None:
    refused = "PERMISSION_DENIED"
    async with generator_behind(files) as target:
        # The operator's call arrives, and is one without prompts.
        assert await answers(target, credentials(made, "alice")) == {
            "Status": "OK",
            "Generate": "INVALID_ARGUMENT",
            "Check": "OK",
            "Watch": "OK",
        }
        assert await answers(target, credentials(made, "dashboard")) == {
            "Status": "OK",
            "Generate": refused,
            "Check": "OK",
            "Watch": "OK",
        }
        assert set((await answers(target, credentials(made, "nobody"))).values()) == {refused}
        async with grpc.aio.insecure_channel(target) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as plain:
                await GeneratorServiceStub(channel).Status(
                    generator_service_pb2.GeneratorServiceStatusRequest(), timeout=TIMEOUT_SECONDS
                )
            assert plain.value.code() is grpc.StatusCode.UNAVAILABLE


async def answers(target: str, given: grpc.ChannelCredentials) -> dict[str, str]:
    """Status code by call, of every kind that the server handles in a way of its own."""
    found = {}
    async with grpc.aio.secure_channel(target, given) as channel:
        stub, health = GeneratorServiceStub(channel), HealthStub(channel)
        # A coroutine that writes its responses, unlike those that return one.
        watch = health.Watch(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_SECONDS)
        calls = {
            "Status": stub.Status(generator_service_pb2.GeneratorServiceStatusRequest()),
            "Generate": stub.Generate(generator_service_pb2.GeneratorServiceGenerateRequest()),
            "Check": health.Check(health_pb2.HealthCheckRequest()),
            "Watch": anext(aiter(watch)),
        }
        for name, call in calls.items():
            try:
                await asyncio.wait_for(call, TIMEOUT_SECONDS)
                found[name] = "OK"
            except grpc.aio.AioRpcError as error:
                found[name] = error.code().name
    return found


@pytest.mark.asyncio
async def test_reflection_answers_a_viewer(files: TlsFiles, made: Path) -> None:
    def services(target: str) -> list[str]:
        with grpc.secure_channel(target, credentials(made, "dashboard")) as channel:
            return list(ProtoReflectionDescriptorDatabase(channel).get_services())

    async with generator_behind(files) as target:
        assert generator_rpc.SERVICE_NAME in await asyncio.to_thread(services, target)


def test_only_calls_that_change_nothing_are_a_viewers() -> None:
    named = {
        service.full_name: {method.name for method in service.methods}
        for service in (
            learner_service_pb2.DESCRIPTOR.services_by_name["LearnerService"],
            generator_service_pb2.DESCRIPTOR.services_by_name["GeneratorService"],
        )
    }
    viewing = {name: {each.rpartition("/")[2] for each in calls} for name, calls in (
        (learner_rpc.SERVICE_NAME, learner_rpc.VIEWING),
        (generator_rpc.SERVICE_NAME, generator_rpc.VIEWING),
    )}  # fmt: skip
    # A new method is an operator's until somebody decides otherwise, here and in the guide.
    assert {name: named[name] - viewing[name] for name in named} == {
        "asympo.v1.LearnerService": {"Pause", "Resume", "Save"},
        "asympo.v1.GeneratorService": {"Pause", "Resume", "Drain", "Generate"},
    }
    assert all(viewing[name] <= named[name] for name in named)
    assert "| `asympo:operator` | these, and Pause, Resume, Save, Drain, Generate |" in SECTION


@pytest.mark.parametrize(
    ("name", "source", "sentence"),
    [
        ("tls.key", None, "cannot read grpc_tls.key .*: No such file"),
        ("tls.key", "alice.key", "is not the key of grpc_tls.certificate .*: give the two that were made"),
        ("tls.key", "ca.crt", "cannot be used with grpc_tls.certificate .*: give its private key in PEM"),
        ("tls.key", "locked.key", "has a passphrase: give the key without"),
        ("tls.crt", "tls.key", "grpc_tls.certificate .* holds no certificate: give one in PEM"),
        ("ca.crt", "empty", "grpc_tls.client_ca .* holds no certificate: give one in PEM"),
    ],
)
def test_files_that_cannot_work_are_refused_at_the_start(
    files: TlsFiles, made: Path, tmp_path: Path, name: str, source: str | None, sentence: str
) -> None:
    (made / "empty").write_text("")
    lock = "openssl pkey -in tls.key -aes256 -passout pass:secret -out locked.key"
    subprocess.run(lock.split(), cwd=made, check=True)
    (tmp_path / name).unlink()
    if source is not None:
        shutil.copy(made / source, tmp_path / name)
    settings = LearnerSettings(grpc_port=0, grpc_tls=files)
    core = LearnerControl(settings=settings, stop=StopSignal(), clock=SystemClock())
    with pytest.raises(BadSetting, match=sentence):
        learner_rpc.RpcServer(learner=core, settings=settings).start()


@pytest.mark.parametrize(("mode", "is_warned"), [(0o644, True), (0o640, False)])
def test_key_that_everybody_may_read_is_warned_of(
    files: TlsFiles, tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int, is_warned: bool
) -> None:
    os.chmod(tmp_path / "tls.key", mode)
    settings = LearnerSettings(grpc_port=0, grpc_tls=files)
    core = LearnerControl(settings=settings, stop=StopSignal(), clock=SystemClock())
    server = learner_rpc.RpcServer(learner=core, settings=settings)
    server.start()
    server.stop()
    assert any("Everybody on this machine may read" in each for each in caplog.messages) is is_warned
