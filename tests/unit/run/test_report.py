"""What is known of a run next morning, and whether its disk holds it."""

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from asympo.cli import main
from asympo.common.errors import AsympoError, BadModel, BadSetting
from asympo.learner.settings import LearnerSettings
from asympo.run.directory import RunDirectory
from asympo.run.events import read_events, write_event
from asympo.run.prepare.broker import noted_broker
from asympo.run.prepare.disk import DiskNeed, check_disk, check_room_left, disk_need
from asympo.run.report.page import how_it_ended, write_page
from asympo.run.report.samples import keep_samples, read_samples


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.sources += [value or "" for name, value in attributes if name in ("src", "href")]


def group(step: int, text: str) -> dict[str, Any]:
    return {"step": step, "prompt": "1 + 1 = ?", "responses": [{"text": text, "reward": 1.0}]}


@pytest.fixture
def ended(tmp_path: Path) -> Path:
    directory = RunDirectory(tmp_path / "night")
    with directory:
        directory.write_mark(
            command=["asympo", "run", "my run.toml", "--fresh"],
            started_in="/home/of mine",
            failure="the disk is full",
            is_finished=False,
            step=12,
        )
    keep_samples(directory.path, [group(1, "<script>alert(1)</script>")])
    keep_samples(directory.path, [group(12, "two")])
    write_event(directory.path, "learner: The disk is full (3 times)")
    write_event(directory.path, "failed at step 12: the disk is full", kind="end")
    (directory.path / "curves.png").write_bytes(b"\x89PNG")
    return directory.path


def test_page_of_an_ended_run_tells_all_in_one_harmless_file(ended: Path) -> None:
    write_page(ended, {"steps": 12, "warnings": ["learner: <b>full</b> (3 times)"], "broken_promises": []})
    text = (ended / "report.html").read_text()
    tags = Tags()
    tags.feed(text)
    assert {"script", "b", "link"}.isdisjoint(tags.names)
    assert all(source.startswith("data:") for source in tags.sources)
    for said in (
        "night: <span class='failed'>failed</span>",
        "failed at step 12: the disk is full",
        "cd &#x27;/home/of mine&#x27; &amp;&amp; asympo run &#x27;my run.toml&#x27;</pre>",
        "Sample of the first steps: step 1",
        "&lt;script&gt;alert(1)",
        "Sample of the last steps: step 12",
        "learner: &lt;b&gt;full&lt;/b&gt; (3 times)",
    ):
        assert said in text, said


def test_runs_show_tells_of_a_run_whose_broker_is_gone(
    ended: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["runs", "show", "night", "--directory", str(ended.parent)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("failed: failed at step 12: the disk is full\n")
    assert "The disk is full (3 times)" in said
    assert "go on with: cd '/home/of mine' && asympo run 'my run.toml'\n" in said
    assert main(["runs", "show", "night", "--directory", str(ended.parent), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)["report"]
    assert (report["state"], report["ended"]) == ("failed", "failed at step 12: the disk is full")
    RunDirectory(ended).write_mark(**noted_broker(None, "redis://me:secret@host/0"))
    assert main(["runs", "show", "night", "--directory", str(ended.parent)]) == 0
    said = capsys.readouterr().out
    assert "&& asympo run 'my run.toml'  # REDIS_URL as before: redis://me:***@host/0\n" in said
    RunDirectory(ended).write_mark(**noted_broker(None, "redis://host/0"))
    assert main(["runs", "show", "night", "--directory", str(ended.parent)]) == 0
    assert "&& REDIS_URL=redis://host/0 asympo run 'my run.toml'\n" in capsys.readouterr().out


def test_run_that_goes_on_or_ended_without_a_word_is_told_as_such(ended: Path) -> None:
    write_event(ended, "begun by process 1", kind="begin")
    write_event(ended, "the learner started again")
    with RunDirectory(ended):
        assert how_it_ended(ended) == ("going on", "the learner started again")
    state, said = how_it_ended(ended)
    assert state == "stopped"
    assert said.startswith("it ended without a word")
    assert said.endswith("after: the learner started again")


def test_first_samples_stay_and_the_last_are_the_newest(ended: Path) -> None:
    kept = read_samples(ended)
    assert [each[0]["step"] for each in (kept["first"], kept["last"])] == [1, 12]


def test_events_stay_small_and_hold_no_password(tmp_path: Path) -> None:
    for number in range(3000):
        write_event(tmp_path, f"{number} redis://:p@ss@host:1 " + "x" * 1000)
    events = read_events(tmp_path)
    assert events[-1]["text"].startswith("2999 ")
    assert (tmp_path / "events.jsonl").stat().st_size < 2.2e6
    assert not any("p@ss" in event["text"] for event in events)


def test_disk_that_cannot_hold_the_run_is_refused_with_what_it_takes(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def need(model: Path = tiny_model, **settings: Any) -> Any:
        learner = LearnerSettings.model_validate(settings)
        return disk_need(
            learner,
            model,
            num_generators=1,
            max_log_bytes=2_000_000,
            broker_bytes=16_000_000,
            max_archive_bytes=10**10,
        )

    weights = sum(path.stat().st_size for path in tiny_model.glob("*.safetensors"))
    assert need(keep_states=3).states - need(keep_states=2).states == pytest.approx(6 * weights, rel=0.2)
    assert need(total_steps=1, save_every=10).states < need().states
    assert need(lora={"rank": 1}).states < need().states / 4
    assert need(lora={"rank": 1}).policies < need().policies / 2
    assert need().archive == 0
    assert need(retain=True).archive == 10**10
    assert 0 < need(retain=True, total_steps=10).archive < 10**8
    twice = shutil.copytree(tiny_model, tmp_path / "twice")
    shutil.copy(twice / "model.safetensors", twice / "consolidated.safetensors")
    assert need(model=twice) == need()
    shutil.rmtree(twice)
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "model.safetensors").symlink_to(tiny_model / "model.safetensors")
    assert need(model=linked) == need()
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=6_000_000))
    with pytest.raises(BadSetting, match=r"has 6.0 MB free, and the run keeps up to .* MB there \(policies"):
        check_disk(tmp_path, need(), keep_free_bytes=0)
    (tmp_path / "old").write_bytes(b"x" * (need().total - 5_000_000))
    check_disk(tmp_path, need(), keep_free_bytes=0)


def need_of(model: Path) -> DiskNeed:
    return disk_need(
        LearnerSettings(), model, num_generators=1, max_log_bytes=1, broker_bytes=1, max_archive_bytes=1
    )


@pytest.mark.parametrize(
    "left",
    [
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 269060552\n",
        b"",
        b"\x02" + bytes(7) + b"{}junk",
        b"\x10" + bytes(7) + b'{"x":{"a":  "b"}',
        bytes(4096),
    ],
    ids=["pointer", "empty", "no tensors", "foreign header", "never written"],
)
def test_model_whose_weights_are_not_all_there_is_refused_in_one_sentence(
    left: bytes, tmp_path: Path
) -> None:
    (tmp_path / "model.safetensors").write_bytes(left)
    with pytest.raises(BadModel, match=r"weights cannot be used: .*model\.safetensors .*git lfs pull"):
        need_of(tmp_path)


def test_model_that_lacks_a_file_of_its_weights_is_refused_in_one_sentence(
    tmp_path: Path, tiny_model: Path
) -> None:
    first, second = (f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
    shutil.copy(tiny_model / "model.safetensors", tmp_path / first)
    index = {"weight_map": {"a": first, "b": second}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BadModel, match=rf"weights cannot be used: .* lacks {second}, which its index names"):
        need_of(tmp_path)


def test_archive_that_outgrows_its_bound_ends_the_run_with_what_to_change(tmp_path: Path) -> None:
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive" / "part.parquet").write_bytes(b"x" * 2000)
    check_room_left(tmp_path, keep_free_bytes=0, max_archive_bytes=2000)
    with pytest.raises(
        AsympoError, match=r"max_archive_gb is 1e-06\): raise it, or go on without learner.retain"
    ):
        check_room_left(tmp_path, keep_free_bytes=0, max_archive_bytes=1000)
