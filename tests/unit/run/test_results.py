"""What is counted and shown at the end."""

import errno
import io
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from asympo.common.errors import BadSetting
from asympo.doctor.checks import Target, check_ports
from asympo.doctor.findings import Level
from asympo.local.ports import free_port, is_free, page_port, require_free
from asympo.ops.runs import local_runs
from asympo.run.audit import count_trained_twice, effective_steps
from asympo.run.console.view import Snapshot, duration, last_reload, panel, sparkline, step_line
from asympo.run.directory import RunDirectory
from asympo.run.held_out.evaluation import Accuracy
from asympo.run.processes.memory import tree_memory
from asympo.run.processes.status import GeneratorTotals, number
from asympo.run.processes.totals import Totals
from asympo.run.report.curves import main as draw_curves
from rich.console import Console

from tests.file_modes import modes_that_bind_root


def write_segments(path: Path, *segments: tuple[int, int, list[str]]) -> Path:
    rows = [
        {"step": None, "first_sequence": first, "last_sequence": last, "group_ids": ids}
        for first, last, ids in segments
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_group_in_two_segments_is_counted_as_trained_twice(tmp_path: Path) -> None:
    path = write_segments(tmp_path / "t", (1, 2, ["a", "b"]), (3, 4, ["c", "a"]))
    assert count_trained_twice(path) == (1, 3)


def test_segments_consumed_again_after_a_kill_are_not_counted_twice(tmp_path: Path) -> None:
    path = write_segments(
        tmp_path / "t", (1, 1, ["a"]), (2, 2, ["b"]), (3, 3, ["c"]), (2, 2, ["b"]), (3, 3, ["c"])
    )
    with path.open("a") as file:
        file.write('{"first_sequence": 4, "group_i')
    assert count_trained_twice(path) == (0, 3)


def test_segment_that_covers_lost_numbers_voids_what_had_them(tmp_path: Path) -> None:
    path = write_segments(tmp_path / "t", (1, 2, ["a", "b"]), (3, 4, ["c", "d"]), (3, 7, ["e", "c"]))
    assert count_trained_twice(path) == (0, 4)


def test_going_back_voids_all_later_steps() -> None:
    rows = [{"step": step, "n": n} for n, step in enumerate((1, 2, 3, 2))]
    assert [row["n"] for row in effective_steps(rows).values()] == [0, 3]


def test_row_of_a_learner_that_was_taken_over_voids_nothing(tmp_path: Path) -> None:
    steps = [{"step": step, "fence": fence} for step, fence in ((1, 1), (2, 2), (3, 2), (2, 1))]
    assert [row["fence"] for row in effective_steps(steps).values()] == [1, 2, 2]
    path = write_segments(tmp_path / "t", (1, 2, ["a", "b"]), (3, 4, ["c", "d"]), (1, 2, ["a", "b"]))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text(
        "".join(json.dumps(row | {"fence": fence}) + "\n" for row, fence in zip(rows, (1, 2, 1), strict=True))
    )
    assert count_trained_twice(path) == (0, 4)


def test_long_history_takes_no_longer_for_each_row() -> None:
    rows = [{"step": step} for step in range(30_000)]
    began = time.process_time()
    assert len(effective_steps(rows)) == len(rows)
    assert time.process_time() - began < 2.0, "linear takes hundredths of a second, quadratic tens"


def test_accuracy_says_its_interval() -> None:
    text = str(Accuracy(num_correct=7, num_prompts=10, policy_step=3, mean_reward=0.7))
    assert text == "0.700 (7 of 10; 95 % interval 0.397 to 0.892)"


def test_counters_survive_restarts_of_their_process() -> None:
    totals = GeneratorTotals()
    totals.note("generator-0", 0, {"reloads": 3, "state": "generating"})
    totals.note("generator-0", 0, {"reloads": 5})
    totals.note("generator-0", 0, {})
    totals.note("generator-0", 1, {"reloads": 2, "reload_pause_seconds": 0.5})
    assert (totals.total("reloads"), totals.total("probe_failures")) == (7, 0)
    assert totals.total("reload_pause_seconds") == 0.5


def test_totals_add_up_over_starts() -> None:
    one = Totals().plus(
        wall_seconds=2,
        peak_memory_bytes=9,
        memory_kind="pss",
        reloads=1,
        reload_pause_seconds=0.25,
        probe_failures=0,
        requests_lost=0,
        restarts=1,
    )
    two = Totals.from_dict({**one.to_dict(), "of_a_later_version": 1}).plus(
        wall_seconds=3,
        peak_memory_bytes=5,
        memory_kind="rss",
        reloads=1,
        reload_pause_seconds=0.25,
        probe_failures=1,
        requests_lost=2,
        restarts=0,
    )
    assert two == Totals(
        wall_seconds=5, peak_memory_bytes=9, memory_kind="pss", reloads=2, probe_failures=1, requests_lost=2,
        reload_pause_seconds=0.5,
        restarts=1, starts=2,
    )  # fmt: skip


def test_curves_are_drawn_from_the_metrics(tmp_path: Path) -> None:
    rows = [{"step": n, "reward_mean": n / 9, "nll_positive": 0.2, "grad_norm": None} for n in range(9)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert draw_curves([str(tmp_path / "metrics.jsonl"), str(tmp_path / "curves.png"), "demo"]) == 0
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_step_line_shows_every_quantity_and_dashes_for_unknown_ones() -> None:
    reload_ = {"step": 7, "verdict": "proved", "seconds": 0.31, "at_seconds": 1.0}
    status = {
        "total_steps": 40,
        "eta_seconds": 61.0,
        "generators": [{"tokens_per_second": 400, "last_reload": reload_}],
    }
    row = {
        "step": 8,
        "reward_mean": 0.5,
        "nll_positive": 0.2,
        "nll_negative": None,
        "tokens_per_second": 700.4,
    }
    line = step_line(row, status)
    for part in (
        "step 8/40",
        "reward 0.500",
        "nll + 0.200 - -",
        "train 700 tok/s",
        "sample 400 tok/s",
        "left 1:01",
    ):
        assert part in line
    assert last_reload(status) == "7 proved 0.31 s"
    assert step_line({}, {})


@pytest.mark.parametrize("value", [None, True, "1", float("nan"), float("inf")])
def test_only_finite_numbers_count_as_numbers(value: object) -> None:
    assert number(value) is None


def test_sparkline_keeps_first_last_and_width() -> None:
    line = sparkline([float(n) for n in range(1000)], width=10)
    assert (len(line), line[0], line[-1]) == (10, "▁", "█")
    assert sparkline([1.0, 1.0]) == "▄▄"
    assert duration(3725) == "1:02:05"


def test_fresh_deletes_only_the_directory_of_a_run(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").touch()
    with pytest.raises(BadSetting, match="not the directory of a run"):
        RunDirectory(precious).delete()
    with pytest.raises(BadSetting, match="holds other files"), RunDirectory(precious):
        pass
    (tmp_path / "link").symlink_to(precious)
    (precious / "run.json").write_text("{}")
    with pytest.raises(BadSetting, match="not the directory of a run"):
        RunDirectory(tmp_path / "link").delete()
    assert (precious / "thesis.tex").exists()
    RunDirectory(precious).delete()
    assert not precious.exists()


def test_deletion_that_is_interrupted_leaves_no_run_and_is_finished_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(path: Path, **_: object) -> None:
        raise KeyboardInterrupt

    directory = RunDirectory(tmp_path / "demo")
    with directory:
        (directory.path / "train").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", interrupted)
        with pytest.raises(KeyboardInterrupt):
            directory.delete()
    assert not directory.path.exists()
    assert list(tmp_path.iterdir()) != []
    with directory:
        assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_run_whose_first_start_got_no_further_than_its_lock_begins_anew(tmp_path: Path) -> None:
    for name in ("begun", "deleted"):
        (tmp_path / name / "logs").mkdir(parents=True)
        (tmp_path / name / "supervisor.lock").touch()
        (tmp_path / name / "run.json.part").touch()
    with RunDirectory(tmp_path / "begun") as begun:
        assert begun.read_mark()["run"] == "begun"
    RunDirectory(tmp_path / "deleted").delete()
    assert not (tmp_path / "deleted").exists()


def test_run_directory_is_held_by_one_supervisor(tmp_path: Path) -> None:
    first, second = RunDirectory(tmp_path / "demo"), RunDirectory(tmp_path / "demo")
    with first:
        first.write_mark(step=3)
        with pytest.raises(BadSetting, match="already running"), second:
            pass
        with pytest.raises(BadSetting, match="already running"):
            second.delete()
    with second:
        assert second.read_mark()["step"] == 3


def test_run_of_another_user_is_told_as_going_on_or_as_one_that_cannot_be_told(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "theirs") as run, modes_that_bind_root():
        run.lock_path.chmod(0o444)
        assert run.is_held
        assert [each["state"] for each in local_runs(tmp_path)] == ["going on"]
        run.lock_path.chmod(0)
        with pytest.raises(BadSetting, match=r"cannot be told: .*supervisor\.lock .*denied"):
            assert not run.is_held
        run.path.chmod(0)
        assert [each["state"] for each in local_runs(tmp_path)] == ["unreadable"]
        run.path.chmod(0o700)
        run.lock_path.chmod(0o444)
    assert not run.is_held


def test_page_port_falls_back_unless_a_person_chose_it() -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert not is_free(port)
        page = page_port(port, is_chosen=False)
        assert page.number > port
        assert page.note is not None
        assert str(port) in page.note
        with pytest.raises(BadSetting, match=f"port {port} is in use.*learner.http_port"):
            page_port(port, is_chosen=True)


def test_port_that_needs_a_right_is_not_told_as_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("socket.socket.bind", refuse)
    said = r"may not listen on port 80 \(Permission denied\): .*CAP_NET_BIND_SERVICE"
    with pytest.raises(BadSetting, match=said):
        require_free(80, setting="broker.port")
    (finding,) = check_ports(Target(directory=Path(), redis_url=None, ports=(80,)))
    assert finding.level is Level.WRONG
    assert re.search(said, finding.text)


def test_runs_that_start_together_do_not_choose_the_same_port() -> None:
    """The learner of the first listens only once it has loaded its libraries."""
    wanted = free_port()
    first = page_port(wanted, is_chosen=False)
    choose = f"from asympo.local.ports import page_port; print(page_port({wanted}, is_chosen=False).number)"

    def second() -> int:
        return int(subprocess.run([sys.executable, "-c", choose], capture_output=True, check=True).stdout)

    assert first.number == wanted
    assert second() > wanted
    with pytest.raises(BadSetting, match=f"port {wanted} is in use"):
        page_port(wanted, is_chosen=True)
    assert first.hold is not None
    first.hold.close()
    assert second() == wanted


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system gives it")
def test_chosen_port_is_given_to_nobody_else_before_its_service_listens() -> None:
    chosen = {free_port() for _ in range(50)}
    assert len(chosen) == 50
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    assert not chosen & set(range(first, last + 1)), "a connection could get it as its own end"
    port = chosen.pop()
    choose = (
        "import random; from asympo.local.ports import free_port\n"
        f"offered = iter([{port}, {port}, 10300])\n"
        "random.SystemRandom.choice = lambda self, ports: next(offered)\n"
        "print(free_port())"
    )
    done = subprocess.run([sys.executable, "-c", choose], capture_output=True, text=True, check=True)
    assert int(done.stdout) == 10300, "another process was given it as well"


def test_memory_of_this_process_is_found() -> None:
    import os

    sample = tree_memory(os.getpid())
    assert sample.total_bytes > 2**20


@pytest.mark.parametrize("rows", [[], [{"step": 1, "reward_mean": 0.1}, {"step": 2, "reward_mean": 0.4}]])
def test_live_panel_is_drawn_with_and_without_numbers(rows: list[dict[str, object]]) -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    snapshot = Snapshot(
        run="demo",
        phase="training",
        elapsed_seconds=61,
        page_url="http://127.0.0.1:8080/",
        status={"total_steps": 40, "backlog": 3, "capacity": 16} if rows else {},
        rows=rows,
        processes=[("learner", "running"), ("generator-0", "restarting")],
        memory_bytes=2**30,
    )
    console.print(panel(snapshot, ["generator-0 was killed by SIGKILL [oops]"]))
    text = console.export_text()
    for part in ("demo · training · 1:01", "generator-0: restarting", "SIGKILL [oops]", "1.00 GiB"):
        assert part in text
    assert ("2 of 40" in text) == bool(rows)
