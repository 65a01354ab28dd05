"""Every settings file that is shipped loads, and bad ones are refused in one sentence."""

import json
import math
import os
import re
import socket
import tomllib
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import pytest
from asympo.cli import main
from asympo.common.checkpoints import digests
from asympo.common.errors import AsympoError, BadSetting
from asympo.demo.command import PRESET
from asympo.engines.vllm_start import thread_environment
from asympo.generator.settings import GeneratorSettings
from asympo.learner.settings import LearnerSettings
from asympo.run.command import resolved_text, run_file
from asympo.run.directory import RunDirectory
from asympo.run.prepare import machine
from asympo.run.prepare.broker import check_broker, noted_broker
from asympo.run.prepare.machine import Gpu, Machine, look_at_machine
from asympo.run.prepare.plan import Plan, check_learner_values, make_plan, odd_sampling
from asympo.run.settings import parse_overrides, read_run_file, take_apart
from pydantic import ValidationError

ROOT = Path(__file__).parents[3]
SHIPPED = [PRESET, *sorted((ROOT / "examples").glob("*.toml"))]
LAPTOP = Machine(cores=(0, 1), memory_bytes=8 * 2**30, gpus=())


def with_gpus(count: int) -> Machine:
    gpus = tuple(Gpu(index=str(i), name="H100", memory_bytes=80 * 2**30) for i in range(count))
    return Machine(cores=tuple(range(8)), memory_bytes=64 * 2**30, gpus=gpus)


def plan_of(directory: Path, machine: Machine = LAPTOP, **sections: dict[str, object]) -> Plan:
    sections["run"] = {"name": "r", "directory": str(directory), "model": "m", **sections.get("run", {})}
    return make_plan(take_apart(sections, source="test"), machine)


@pytest.fixture(autouse=True)
def _no_broker_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_settings_load_and_survive_being_written_out(path: Path, tmp_path: Path) -> None:
    file = read_run_file(path)
    check_learner_values(file)
    again = tmp_path / "again.toml"
    again.write_text(resolved_text(file))
    reread = read_run_file(again)
    check_learner_values(reread)
    assert resolved_text(reread).splitlines()[1:] == resolved_text(file).splitlines()[1:]


def test_models_of_the_paper_are_among_the_examples() -> None:
    models = {tomllib.loads(path.read_text())["run"].get("model") for path in SHIPPED}
    assert {"Qwen/Qwen3-1.7B-Base", "Qwen/Qwen3-4B-Base", "meta-llama/Llama-3.2-3B-Instruct"} <= models


@pytest.mark.parametrize(
    ("quota", "learner_cores", "generator_threads"),
    [(0.0, range(43), 21), (64.0, range(43), 21), (3.5, (), 1), (8.0, (), 2)],
)
def test_containers_that_share_cores_bind_nothing_and_keep_to_their_quota(
    quota: float,
    learner_cores: Sequence[int],
    generator_threads: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(digests, "_cpu_quota", lambda: quota)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(64)))
    monkeypatch.setattr(machine, "look_at_gpus", lambda environment: ((), None, ""))
    plan = plan_of(tmp_path, look_at_machine())
    share, engine = plan.learner.share, plan.generators[0].settings.vllm
    assert share.cores == tuple(learner_cores)
    assert share.environment["OMP_NUM_THREADS"] == str(share.num_threads)
    assert len(engine.cpu_ids or ()) == (generator_threads if learner_cores else 0)
    assert thread_environment(engine)["OMP_NUM_THREADS"] == str(generator_threads)
    if quota:
        assert share.num_threads + generator_threads == math.ceil(quota)
    given = plan_of(tmp_path, look_at_machine(), run={"learner_cores": [5, 6]}, generator={"cores": [9]})
    assert given.learner.share.cores == (5, 6)
    assert given.generators[0].settings.vllm.cpu_ids == (9,)
    workers: dict[str, object] = {"vllm": {"tensor_parallel_size": 2}}
    split = plan_of(tmp_path, look_at_machine(), generator=workers).generators[0].settings.vllm
    assert thread_environment(split)["OMP_NUM_THREADS"] == str(max(1, generator_threads // 2))


def test_plan_writes_what_each_service_reads(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, learner={"total_steps": 3}, generator={"count": 2, "max_groups_in_flight": 5})
    learner = LearnerSettings.load(["--config", str(plan.learner.settings_path)], environ={})
    assert (learner.run, learner.model, learner.total_steps) == ("r", "m", 3)
    assert learner.checkpoint_root / "r" == plan.directory
    first, second = (
        GeneratorSettings.load(["--config", str(each.settings_path)], environ={}) for each in plan.generators
    )
    assert first.redis_url == learner.redis_url == plan.broker_url
    assert first.max_groups_in_flight == 5
    ports = [learner.http_port, learner.grpc_port, first.http_port, first.grpc_port, second.http_port]
    assert len({*ports, second.grpc_port}) == 6


def test_password_of_a_given_broker_is_written_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://:hunter2@127.0.0.1:1/0")
    plan = plan_of(tmp_path)
    assert not plan.is_broker_embedded
    assert plan.learner.settings.redis_url == "redis://:hunter2@127.0.0.1:1/0"
    assert all("hunter2" not in path.read_text() for path in tmp_path.rglob("*.toml"))


@pytest.mark.parametrize("was_given", [True, False])
def test_run_that_would_go_on_with_another_kind_of_broker_is_refused(
    was_given: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = "redis://:hunter2@127.0.0.1:1/0"
    with RunDirectory(tmp_path / "r") as held:
        held.write_mark(**noted_broker(None, given) if was_given else noted_broker("unix:///own", None))
    file = take_apart({"run": {"name": "r", "directory": str(tmp_path), "model": "m"}}, source="test")
    no_flags = Namespace(check_config=False, dry_run=False, fresh=False)
    if not was_given:
        monkeypatch.setenv("REDIS_URL", given)
    # A start that found no broker leaves no log: whoever mends that is not refused.
    check_broker(file, held.read_mark())
    if was_given:
        (held.path / "metrics.jsonl").write_text('{"step": 1}\n')
    else:
        (held.path / "broker").mkdir()
        (held.path / "broker" / "appendonly.aof").touch()
    with pytest.raises(
        BadSetting, match=r"has its log on a broker .* redis://:\*\*\*@127.0.0.1:1/0"
    ) as caught:
        run_file(file, no_flags)
    assert ("set REDIS_URL or broker.url as before" in str(caught.value)) is was_given
    assert not (tmp_path / "r" / "config").exists()


def test_one_gpu_is_used_in_turns_where_a_run_asks_for_it(tmp_path: Path) -> None:
    run: dict[str, object] = {"gpu_sharing": "sleep"}
    plan = plan_of(tmp_path, with_gpus(1), run=run, generator={"count": 2})
    lock = plan.directory / "gpu.lock"
    assert plan.learner.settings.gpu_lock == lock
    for each in plan.generators:
        assert each.settings.gpu_lock == lock
        assert each.settings.vllm.enable_sleep_mode
        assert each.settings.vllm.gpu_memory_utilization == 0.25
    split = plan_of(tmp_path, with_gpus(1))
    assert split.learner.settings.gpu_lock is split.generators[0].settings.gpu_lock is None
    said = "run.gpu_sharing is sleep: without a GPU the engine only waits while the learner computes"
    assert said in plan_of(tmp_path, run=run).notes
    assert said not in plan.notes
    with pytest.raises(BadSetting, match="with 2 GPUs the learner has one of its own"):
        plan_of(tmp_path, with_gpus(2), run=run)
    for values, reason in (
        ({"engine": "openai"}, "engine is openai: leave it out"),
        ({"engine": "vllm"}, "set vllm.enable_sleep_mode to true"),
    ):
        with pytest.raises(ValidationError, match=reason):
            GeneratorSettings(run="r", gpu_lock=lock, **values)


@pytest.mark.parametrize(
    ("num_gpus", "count", "expected"),
    [
        (1, 1, [("0", 0.4)]),
        (1, 2, [("0", 0.2)] * 2),
        (2, 1, [("1", 0.9)]),
        (3, 4, [("1", 0.45), ("2", 0.45)] * 2),
    ],
)
def test_gpus_are_shared_out(
    num_gpus: int, count: int, expected: list[tuple[str, float]], tmp_path: Path
) -> None:
    plan = plan_of(tmp_path, with_gpus(num_gpus), generator={"count": count})
    assert plan.learner.share.environment["CUDA_VISIBLE_DEVICES"] == "0"
    found = [
        (each.share.environment["CUDA_VISIBLE_DEVICES"], each.settings.vllm.gpu_memory_utilization)
        for each in plan.generators
    ]
    assert found == expected


def test_overrides_are_toml_or_else_text() -> None:
    flags = [
        "--learner.total-steps",
        "3",
        "--run.model=Qwen/x",
        "--run.sampling.stop=['a']",
        "--run.evaluate",
        "false",
    ]
    assert parse_overrides(flags) == {
        "learner": {"total_steps": 3},
        "run": {"model": "Qwen/x", "sampling": {"stop": ["a"]}, "evaluate": False},
    }


def test_override_of_a_part_beside_the_whole_is_refused() -> None:
    inline = parse_overrides(["--run.task={name='a'}", "--run.task.path", "p"])
    assert inline == {"run": {"task": {"name": "a", "path": "p"}}}
    with pytest.raises(BadSetting, match=r"--run.task.name sets a part of task, .* \('addition'\): give one"):
        parse_overrides(["--run.task", "addition", "--run.task.name", "x"])
    with pytest.raises(BadSetting, match=r"--learner.lora.rank sets a part of lora, .* \(True\): give one"):
        parse_overrides(["--learner.lora", "true", "--learner.lora.rank", "4"])
    assert parse_overrides(["--run.task.path", "p", "--run.task={name='a'}"]) == inline
    with pytest.raises(BadSetting, match=r"--learner.lora gives lora as a whole \(True\), .* give one"):
        parse_overrides(["--learner.lora.rank", "4", "--learner.lora", "true"])
    assert parse_overrides(["--run.task={name='a'}", "--run.task", "b"]) == {"run": {"task": "b"}}


def test_flags_may_stand_before_the_settings_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--learner.total-steps", "7", "--check-config", str(SHIPPED[1])]) == 0
    assert tomllib.loads(capsys.readouterr().out)["learner"]["total_steps"] == 7
    assert main(["run", "--lerner.total-steps", "7", str(SHIPPED[1])]) == 2
    assert "there is no flag --lerner.total-steps" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"lerner": {}}, "no section [lerner]: did you mean learner?"),
        ({"run": 3}, "[run] is a section"),
        ({"learner": {"total_step": 3}}, "total_step in [learner] of test: did you mean total_steps?"),
        ({"generator": {"vllm": {"dtyp": "x"}}}, "vllm.dtyp in [generator] of test: did you mean vllm"),
        ({"run": {"name": "a/b"}}, "the setting name was given 'a/b' in [run] of test"),
        ({"run": {"max_stalenes": 1}}, "max_stalenes in [run] of test: did you mean max_staleness?"),
        ({"learner": {"run": "x"}}, "run in [learner] of test is decided by [run] and [broker]"),
        (
            {"generator": {"grpc_tls": {"certificate": "a", "key": "b", "client_ca": "c"}}},
            "grpc_tls in [generator] of test is for services of several machines: leave it out",
        ),
        ({"evaluator": {"reward_worker": 2}}, "reward_worker in [evaluator] of test: did you mean reward_w"),
        ({"run": {"sampling": {"top_p": 2}}}, "sampling.top_p was given 2 in [run] of test"),
        ({"generator": {"count": 2, "http_port": 1}}, "generator.http_port is given for 2 generators"),
    ],
)  # fmt: skip
def test_wrong_section_or_key_is_one_sentence(
    sections: dict[str, object], expected: str, tmp_path: Path
) -> None:
    run = sections.get("run", {})
    if isinstance(run, dict):
        sections = {**sections, "run": {"directory": str(tmp_path), **run}}
    with pytest.raises(BadSetting) as caught:
        make_plan(take_apart(sections, source="test"), LAPTOP)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_evaluator_is_printed_with_what_was_given_and_its_defaults() -> None:
    given = {"engine": "generators", "reward_workers": 3}
    run = {"evals": [{"name": "e"}]}
    text = resolved_text(take_apart({"run": run, "evaluator": given}, source="test"))
    shown = tomllib.loads(text)["evaluator"]
    assert shown["reward_timeout_seconds"] == 10.0
    assert {key: shown[key] for key in given} == given
    assert {"http_port", "evals", "generators"}.isdisjoint(shown)
    assert "evaluator" not in tomllib.loads(resolved_text(take_apart({}, source="test")))
    check_learner_values(take_apart({"evaluator": {"generators": ["127.0.0.1:1"]}}, source="test"))


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"evaluator": {"reward_worker": 2}}, "did you mean reward_workers"),
        ({"run": {"model": "/no/such/model"}}, "/no/such/model is not a directory with a config.json"),
        ({"learner": {"device": "cuda"}}, "learner.device is cuda"),
        ({"run": {"task": {"name": "jsonl", "path": "/no/such/rows"}}}, "/no/such/rows"),
        ({"broker": {"port": "PORT"}}, "give another as broker.port"),
        ({"learner": {"grpc_port": "PORT"}}, "give another as learner.grpc_port"),
    ],
)
def test_fresh_deletes_nothing_for_settings_that_are_wrong(
    sections: dict[str, dict[str, object]], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asympo.run.prepare.machine.look_at_machine", lambda: LAPTOP)
    with RunDirectory(tmp_path / "r") as held:
        held.write_mark(step=5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        sections = {
            name: {key: port if value == "PORT" else value for key, value in section.items()}
            for name, section in sections.items()
        }
        sections["generator"] = {"engine": "simulated"}
        sections["run"] = {"name": "r", "directory": str(tmp_path), "model": "m", **sections.get("run", {})}
        fresh = Namespace(check_config=False, dry_run=False, fresh=True)
        with pytest.raises(AsympoError, match=re.escape(words)):
            run_file(take_apart(sections, source="test"), fresh)
    assert held.read_mark()["step"] == 5


@pytest.mark.parametrize(
    ("sampling", "word"),
    [
        ({"temperature": 0.0}, "equal"),
        ({"temperature": 0.2}, "near 1.0"),
        ({"top_p": 0.5}, "top_p"),
        ({"max_tokens": 2}, "few"),
    ],
)
def test_odd_sampling_is_remarked_on(sampling: dict[str, float], word: str) -> None:
    settings = Namespace(
        sampling=Namespace(**{"temperature": 1.0, "top_p": 1.0, "max_tokens": 16, **sampling})
    )
    (sentence,) = odd_sampling(settings)
    assert word in sentence


def test_existing_demo_is_not_started_again_unasked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "demo").mkdir()
    mark = tmp_path / "demo" / "run.json"
    mark.write_text('{"step": 3}')
    # Whoever killed the supervisor let it note nothing more; its learner went back from step 8 to 7.
    steps = (4, 5, 6, 7, 8, 7)
    (tmp_path / "demo" / "metrics.jsonl").write_text("".join(f'{{"step": {step}}}\n' for step in steps))
    with RunDirectory(tmp_path / "demo"):
        assert main(["demo", f"--run.directory={tmp_path}"]) == 1
        assert f"is running (process {os.getpid()}), at step 7." in capsys.readouterr().out
    assert main(["runs", "list", "--directory", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 7
    assert main(["demo", f"--run.directory={tmp_path}"]) == 1
    said = capsys.readouterr().out
    assert "stopped at step 7" in said
    assert "--resume" in said
    assert "--fresh" in said
    mark.write_text('{"step": 40, "is_finished": true}')
    assert main(["demo", f"--run.directory={tmp_path}"]) == 0
    assert "--fresh" in capsys.readouterr().out
