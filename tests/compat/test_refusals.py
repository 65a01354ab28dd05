"""What a later release wrote: what may be left out is, the rest is refused by name with what to do."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from asympo.common import archive
from asympo.common.checkpoints.manifest import sealed_json
from asympo.common.checkpoints.opening import open_policies
from asympo.common.errors import RunConfigMismatch, UnknownVersion
from asympo.common.rollout_log import RunConfig
from asympo.common.rollout_log.run_config import SCHEMA, SCRIPTS
from asympo.common.settings import iter_options, read_toml, validate
from asympo.common.versions import Format
from asympo.generator.settings import GeneratorSettings
from asympo.learner.log.create_run import _completed
from asympo.learner.settings import LearnerSettings
from asympo.learner.state.open import open_states
from asympo.tasks.config import TaskConfig
from asympo.tasks.registry import load_task
from asympo.v1 import generator_service_pb2, learner_service_pb2
from pyarrow import parquet

from tests.compat.recording import RUN, recorded_pieces
from tests.compat.release_before import RECORD

LATER = "a newer release wrote it, upgrade this one"


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    shutil.copytree(RECORD / "storage", tmp_path, dirs_exist_ok=True)
    return tmp_path


def change_manifest(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads((path / "manifest.json").read_bytes())
    change(document)
    (path / "manifest.json").write_bytes(sealed_json(document))


def add_keys(document: dict[str, Any]) -> None:
    document["later"] = {"any": 1}
    document["files"][0]["later"] = 1
    document["tensors"][0]["later"] = "x"


def the_config() -> RunConfig:
    [piece] = [each for each in recorded_pieces(RECORD, root=Path("/run")) if each.noun == "config"]
    return RunConfig.from_json(piece.items[0])


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (4, LATER),
        (1, "upgrade one release at a time"),
        (None, "not the version"),
        ("2", "not the version"),
        (True, "not the version"),
    ],
)
def test_version_out_of_reach_is_refused_with_what_to_do(found: object, words: str) -> None:
    known = Format(name="schema_version", newest=3, oldest=2)
    assert [known.check(number, what="it") for number in (2, 3)] == [2, 3]
    with pytest.raises(UnknownVersion, match=f"it has schema_version .* this build reads 2 to 3: .*{words}"):
        known.check(found, what="it")


@pytest.mark.parametrize("name", ["schema_version", "script_version"])
def test_run_of_a_later_release_is_refused(name: str) -> None:
    fields = {**json.loads(the_config().to_json()), name: 99}
    with pytest.raises(UnknownVersion, match=f"run 'recorded' has {name} 99.*{LATER}"):
        RunConfig.from_json(json.dumps(fields))


def test_run_of_the_release_before_keeps_its_versions() -> None:
    read = RunConfig.from_json(the_config().to_json())
    assert (read.schema_version, read.script_version, read.has_segments) == (1, 2, False)
    newer = dataclasses.replace(read, schema_version=SCHEMA.newest, script_version=SCRIPTS.newest)
    assert (newer.differences(read), newer.has_segments) == ([], True)


def test_run_of_a_release_that_knew_fewer_settings_is_joined() -> None:
    fields = json.loads(the_config().to_json())
    for name in ("max_prompt_failures", "overlong_reward"):
        del fields[name]
    for mapping, name in (("task", "prompt_as"), ("sampling", "min_tokens")):
        del fields[mapping][name]
    stored = RunConfig.from_json(json.dumps(fields))
    assert the_config().differences(_completed(stored)) == []
    stored = dataclasses.replace(stored, sampling={**stored.sampling, "later": 1})
    with pytest.raises(RunConfigMismatch, match=r"an option this build does not know \(later:"):
        _completed(stored)


def test_manifests_with_keys_of_a_later_release_are_read(storage: Path) -> None:
    policies, states = open_policies(storage, RUN), open_states(storage, RUN)
    [name] = states.names()
    for path in ((storage / RUN / "policy" / "step-00000005-f0001"), storage / RUN / "train" / name):
        change_manifest(path, add_keys)
    newest = policies.newest(with_digests=True)
    assert newest is not None
    assert newest.step == 5
    states.verify(name)
    assert states.tensors(name)
    assert archive.open_archive(storage / RUN).newest_tip() is not None


def test_policy_of_a_later_release_is_passed_over_and_named(
    storage: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = storage / RUN / "policy" / "step-00000005-f0001"
    change_manifest(path, lambda document: document.update(schema_version=2))
    newest = open_policies(storage, RUN).newest()
    assert newest is not None
    assert newest.step == 4
    assert f"{path} has schema_version 2" in caplog.text
    assert LATER in caplog.text


def test_training_state_of_a_later_release_stops_the_learner_by_name(storage: Path) -> None:
    states = open_states(storage, RUN)
    [name] = states.names()
    change_manifest(storage / RUN / "train" / name, lambda document: document.update(schema_version=2))
    for look in (states.names, lambda: states.read(name), archive.open_archive(storage / RUN).newest_tip):
        with pytest.raises(UnknownVersion, match=f"{name} has schema_version 2.*{LATER}"):
            look()


def test_archive_part_of_a_later_release(storage: Path) -> None:
    store = archive.open_archive(storage / RUN)
    tip = store.newest_tip()
    assert tip is not None
    path = store.path / tip.name
    table = parquet.read_table(path)
    info = json.loads(table.schema.metadata[b"asympo.archive"])

    def rewrite(**changes: Any) -> None:
        metadata = {b"asympo.archive": json.dumps({**info, **changes})}
        wider = table.append_column("later", [[1] * len(table)])
        parquet.write_table(wider.replace_schema_metadata(metadata), path)

    rewrite(later=1)
    [part] = store.chain(tip)
    assert part.info.last == 13
    rewrite(schema_version=2)
    with pytest.raises(UnknownVersion, match=f"{tip.name} has schema_version 2.*{LATER}"):
        store.chain(tip)


@pytest.mark.parametrize("settings", [LearnerSettings, GeneratorSettings])
def test_settings_of_the_release_before_are_still_settings(
    settings: type[LearnerSettings] | type[GeneratorSettings],
) -> None:
    names = json.loads((RECORD / "setting_names.json").read_text())[settings.service]
    assert set(names) <= {".".join(option.path) for option in iter_options(settings)}
    validate(settings, read_toml(RECORD / f"{settings.service}.toml"))


def test_task_of_the_release_before_is_the_same_task() -> None:
    digests = json.loads((RECORD / "task_digests.json").read_text())
    for name, digest in digests.items():
        assert load_task(TaskConfig.model_validate({"name": name})).digest == digest


def test_answers_of_control_services_of_a_later_release_are_read() -> None:
    later = bytes([0xFA, 0x3F, 3]) + b"new"
    known = learner_service_pb2.LearnerServiceStatusResponse(
        state=learner_service_pb2.LearnerState.Name(3), run="r", step=7
    )
    status = learner_service_pb2.LearnerServiceStatusResponse.FromString(known.SerializeToString() + later)
    assert (status.state, status.run, status.step) == (3, "r", 7)
    # A state of a later release: no name here, and no error.
    unknown = generator_service_pb2.GeneratorServicePauseResponse.FromString(bytes([0x08, 99]))
    assert unknown.state == 99
