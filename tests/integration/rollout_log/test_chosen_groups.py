"""`asympo log show` and `log export` by step, reward, function and prompt: from the archive and the log."""

import dataclasses
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from asympo.cli import main
from asympo.common.archive.choice import Choice, parse_steps
from asympo.common.codec import WireLimits, decode_group, encode_group
from asympo.common.errors import BadSetting
from asympo.common.records import FinishReason, Prompt, Response, RolloutGroup
from asympo.common.rollout_log import RunLog

from tests.integration.rollout_log.conftest import must_append, must_lease, start_run
from tests.integration.rollout_log.test_export import archive


def append(log: RunLog, prompt: str, *rewards: float) -> None:
    lease = must_lease(log)
    group = RolloutGroup(
        group_id=lease.group_id,
        prompt=Prompt(token_ids=(1,), text=prompt),
        responses=tuple(
            Response(
                token_ids=(2,),
                text=f"says {reward}",
                reward=reward,
                finish_reason=FinishReason.STOP,
                function_values={"length": -10 * reward},
            )
            for reward in rewards
        ),
        columns_json='{"level": 3}',
    )
    must_append(log, lease, encode_group(group))


@pytest.fixture
def flags(log: RunLog, tmp_path: Path) -> list[str]:
    """Step 1 is archived and trimmed; step 2 trained but not durable; the last groups wait."""
    learner = start_run(log, groups_per_step=8, max_groups_per_step=8)
    for number, prompt in enumerate(("What is 1 + 1?", "Name a CITY", "What is 2 + 2?", "What is 3 + 3?")):
        append(log, prompt, 0.0, number / 4)
    append(log, "What is 4 + 4?", 0.5, 0.5)
    entries = list(learner.consume(2))
    archive(log, tmp_path, entries)
    learner.commit([entry.group_id for entry in entries])
    rows = [
        {"step": 1, "first_sequence": 1, "last_sequence": 2},
        {"step": 9, "first_sequence": 3, "last_sequence": 5},
        {"step": 2, "first_sequence": 3, "last_sequence": 4},  # a learner that died consumed otherwise
        {"step": "two", "first_sequence": "x"},
    ]
    (tmp_path / log.run / "trained.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["--run", log.run, "--checkpoint-root", str(tmp_path), "--redis-url", log.broker.url]


@pytest.mark.parametrize(
    ("chosen", "sequences"),
    [
        (["--step", "1"], [1, 2]),
        (["--step", "2-"], [3, 4]),
        (["--step", "0-1", "--prompt", "city"], [2]),
        (["--prompt", "what is"], [1, 3, 4, 5]),
        (["--min", "0.5"], [3, 4, 5]),
        (["--min", "0.5", "--max", "0.6"], [3, 5]),
        (["--function", "length", "--max=-6"], [4]),
        (["--function", "none-such"], []),
        (["--prompt", "what", "--count", "2"], [4, 5]),
    ],
)
def test_show_and_export_find_the_same_groups(
    flags: list[str],
    chosen: list[str],
    sequences: list[int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["log", "show", *flags, *chosen, "--json"]) == 0
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [group["sequence"] for group in shown] == sequences
    assert main(["log", "show", *flags, *chosen]) == 0
    assert ("no group fits" in capsys.readouterr().out) == (not sequences)
    if "--count" in chosen:
        return
    out = tmp_path / "chosen.parquet"
    assert main(["log", "export", *flags, *chosen, "--out", str(out)]) == 0
    rows = pq.read_table(out).to_pylist()
    assert [row["sequence"] for row in rows] == sequences
    for row in rows:
        group = decode_group(row["payload"], limits=WireLimits())
        assert json.loads(row["functions"]) == [{"length": -10 * each.reward} for each in group.responses]
        assert row["columns"] == '{"level": 3}'


def test_export_writes_a_file_for_each_step(flags: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out" / "step-{step}.parquet"
    assert main(["log", "export", *flags, "--out", str(out)]) == 0
    found = {path.name: pq.read_table(path).num_rows for path in out.parent.iterdir()}
    assert found == {"step-00000001.parquet": 2, "step-00000002.parquet": 2}
    assert main(["log", "export", *flags, "--out", str(tmp_path / "{step}" / "x.parquet")]) == 2


@pytest.mark.parametrize(
    "given",
    [
        ["--step", "ten"],
        ["--step", "9-3"],
        ["--step", "-1"],
        ["--step", "1", "--sequence", "1"],
        ["--count", "0"],
    ],
)
def test_show_refuses_what_chooses_nothing_in_one_sentence(
    flags: list[str], given: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["log", "show", *flags, *given]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_steps_are_read_as_they_are_written() -> None:
    assert [parse_steps(text) for text in ("12", "10-20", "7-")] == [(12, 12), (10, 20), (7, None)]
    assert dataclasses.replace(Choice(), first_step=0, last_step=0).takes_step(0)
    assert not Choice(first_step=0, last_step=0).takes_step(1)
    with pytest.raises(BadSetting, match="give 12, 10-20, or 10-"):
        parse_steps("１２")
