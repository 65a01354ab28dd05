"""The wire schema keeps its rules: every field explained, nothing that ties a learner to an engine."""

import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SCHEMAS = sorted((REPOSITORY / "proto" / "asympo" / "v1").glob("*.proto"))
FIELD = re.compile(r"^  (?:optional |repeated )?(?:[\w.]+|map<\w+, \w+>) (\w+) = \d+;$")
BEHAVIOUR = re.compile(r"log_?prob|policy_(?:step|version)|engine", re.IGNORECASE)


def fields_with_comments(path: Path) -> list[tuple[str, str]]:
    """(field, its comment) of every message field; enum values have no type and are left out."""
    found, comment = [], []
    for line in path.read_text().splitlines():
        if line.strip().startswith("//"):
            comment.append(line.strip(" /"))
            continue
        if match := FIELD.match(line):
            found.append((match.group(1), " ".join(comment)))
        comment = []
    return found


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: path.name)
def test_every_field_names_writer_reader_and_absence(path: Path) -> None:
    module = import_module(f"asympo.v1.{path.stem}_pb2")
    messages = module.DESCRIPTOR.message_types_by_name.values()
    fields = fields_with_comments(path)
    assert len(fields) == sum(len(message.fields) for message in messages)
    for name, comment in fields:
        assert re.search(r"Writer: .+ Reader: .+ Absent: .+\.", comment), f"{path.name}: {name}"


def test_records_carry_nothing_about_the_policy_that_wrote_them() -> None:
    fields = fields_with_comments(REPOSITORY / "proto" / "asympo" / "v1" / "rollout.proto")
    assert not [name for name, _ in fields if BEHAVIOUR.search(name)]


def test_breaking_check_refuses_a_schema_that_lost_a_field(tmp_path: Path) -> None:
    schema = tmp_path / "proto"
    shutil.copytree(REPOSITORY / "proto", schema)
    rollout = schema / "asympo" / "v1" / "rollout.proto"
    rollout.write_text(rollout.read_text().replace("  optional double reward = 3;\n", ""))
    buf = Path(sys.executable).with_name("buf")
    command = [str(buf), "breaking", str(schema), "--against", str(REPOSITORY / "proto" / "base.binpb")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert 'Previously present field "3" with name "reward" on message "Response" was deleted' in done.stdout


def test_schema_passes_lint_and_breaks_nothing_when_checked() -> None:
    done = subprocess.run(
        ["deploy/local/gen_proto.sh", "--lint"], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
