"""The status page in headless Chromium, fed by a server on a free port."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.integration.page.browser import Browser
from tests.integration.page.conftest import CONNECTED, HOSTILE, points, soon
from tests.integration.page.recorded import RecordedLearner, Server, generator, recorded_eval, recorded_rows

pytestmark = pytest.mark.chromium

CHARTS = {
    "reward": 1,
    "nll": 2,
    "grad_norm": 1,
    "entropy": 1,
    "staleness": 3,
    "throughput": 2,
    "length": 2,
    "time": 4,
}
DISCONNECTED = "document.body.dataset.connection === 'disconnected'"


def colours(page: Browser, chart: str, path: Path) -> dict[tuple[int, int, int], int]:
    """How many pixels of the chart's own canvas have each opaque colour."""
    canvas = f"document.querySelector('[data-chart={chart}] canvas')"
    page.run(f"{canvas}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
    left, top, width, height = page.run(
        f"(r => [r.left, r.top, r.width, r.height])({canvas}.getBoundingClientRect())"
    )
    with Image.open(page.screenshot(path, whole_page=False)) as picture:
        area = picture.convert("RGB").crop((int(left), int(top), int(left + width), int(top + height)))
        counts: Any = area.getcolors(1 << 20)
        return {colour: count for count, colour in counts}


def colour_of(page: Browser, name: str) -> tuple[int, int, int]:
    text = page.run(f"getComputedStyle(document.documentElement).getPropertyValue('--{name}').trim()")
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)


def test_page_draws_every_curve_from_the_history(page: Browser, tmp_path: Path) -> None:
    for chart, num_series in CHARTS.items():
        data = page.run(f"({{...document.querySelector('[data-chart={chart}]').dataset}})")
        assert (int(data["points"]), int(data["series"])) == (41, num_series), chart
        assert int(data["drawn"]) >= 1
    drawn = colours(page, "nll", tmp_path / "nll.png")
    assert drawn.get(colour_of(page, "positive"), 0) > 50
    assert drawn.get(colour_of(page, "negative"), 0) > 50


def test_page_shows_the_run_and_the_state_of_each_part(page: Browser) -> None:
    assert page.text("#state") == "running"
    assert "Step 41\nof 60" in page.text(".run") or "Step 41 of 60" in page.text(".run")
    for text in ("SmolLM2-135M-Instruct", "asympo", "about 1 min 58 s left"):
        assert text in page.text(".run")
    assert "15 open" in page.text("#part-log")
    assert "9 free" in page.text("#part-log")
    assert "valkey 9.1.2" in page.text("#part-broker")
    assert "step 40" in page.text("#part-learner")
    row = page.text("[data-generator=generator-1]")
    for text in ("generating", "step 40", "310 ms", "16 in flight", "proved", "228", "1,480"):
        assert text in row
    assert page.run("document.title") == "41/60 · demo · ASymPO"


def test_page_shows_paused_warnings_failed_probe_and_a_lost_generator(
    page: Browser, learner: RecordedLearner
) -> None:
    failed = {"step": 42, "verdict": "failed", "seconds": 0.4, "at_seconds": 0.0, "in_flight": 3}
    learner.status |= {"paused": True, "dead_letters": 3, "generators": [generator(1, last_reload=failed)]}
    learner.status["broker"] = {
        "server": "redis",
        "version": "7.4.1",
        "warnings": ["appendfsync is everysec"],
    }
    learner.status["warnings"] = [
        {"text": "The disk is full", "level": "error", "count": 1},
        {"text": "Said once only", "level": "warning", "count": 1},
        {"text": "No heartbeat", "level": "warning", "count": 1234},
    ]
    soon(page, "document.querySelector('#state').textContent === 'paused'")
    assert "appendfsync is everysec" in page.text("#part-broker")
    for text in ("learner: No heartbeat (1,234 times)", "learner: The disk is full (once)"):
        assert text in page.text("#part-warnings")
    assert "Said once only" not in page.text("#part-warnings")
    assert (
        page.run("document.querySelector('[data-generator=generator-1] [data-tone=bad]').textContent")
        == "failed"
    )
    assert "lost" in page.text("[data-generator=generator-2]")
    assert "1 lost" in page.text("#part-generators")


def test_page_follows_new_steps_asking_only_for_them(page: Browser, learner: RecordedLearner) -> None:
    learner.history_requests.clear()
    learner.rows = recorded_rows(44)
    learner.status |= {"step": 44, "state": "draining"}
    soon(page, f"{points('reward')} === 44")
    assert page.text("#state") == "draining"
    assert set(learner.history_requests) == {41}


def test_page_starts_over_when_a_resumed_learner_went_back(page: Browser, learner: RecordedLearner) -> None:
    learner.rows = recorded_rows(30, seed=7)
    learner.status |= {"step": 30, "fence": 2}
    soon(page, f"{points('nll')} === 30")
    learner.rows = recorded_rows(50, seed=7)
    learner.status |= {"step": 50, "fence": 3}
    soon(page, f"{points('nll')} === 50")


def test_page_says_disconnected_and_recovers_by_itself(
    page: Browser, learner: RecordedLearner, server: Server
) -> None:
    server.stop()
    page.wait_for(DISCONNECTED)
    assert page.text("#state") == "disconnected"
    assert "The learner does not answer." in page.text("#notice")
    assert "last known state" in page.text("#notice")
    assert page.run("document.querySelector('#announce').textContent") == "The learner does not answer."
    assert "not connected" in page.text("#part-learner")
    assert "Step 41" in page.text(".run"), "the last known numbers stay"
    learner.rows = recorded_rows(42)
    learner.status |= {"step": 42}
    server.start()
    page.wait_for(f"{CONNECTED} && {points('reward')} === 42")
    assert page.run("document.querySelector('#notice').hidden")
    assert page.text("#state") == "running"


def test_page_shows_the_learners_own_words_when_it_answers_with_an_error(
    page: Browser, learner: RecordedLearner
) -> None:
    learner.is_failing = True
    soon(page, DISCONNECTED)
    assert "It says: the broker is away." in page.text("#notice")
    learner.is_failing = False
    soon(page, CONNECTED)


def test_page_says_that_the_run_is_over_when_a_finished_learner_is_gone(
    page: Browser, learner: RecordedLearner, server: Server
) -> None:
    learner.status |= {"state": "finished"}
    soon(page, "document.querySelector('#state').textContent === 'finished'")
    server.stop()
    soon(page, DISCONNECTED)
    assert "The run has finished" in page.text("#notice")


def test_page_draws_each_reward_function_by_itself(page: Browser, learner: RecordedLearner) -> None:
    assert page.run("document.querySelectorAll('[data-chart=functions]').length") == 0
    for row in (rows := recorded_rows(44))[20:]:
        row |= {"reward/accuracy/mean": row["reward_mean"], "reward/accuracy/spread": 0.2}
        row |= {
            "reward/judge/mean": -row["step"],
            "reward/judge/spread": 0.0,
            "reward/judge/length/mean": 9.0,
        }
    learner.rows = rows
    learner.status |= {"step": 44, "fence": 2}
    soon(page, "document.querySelector('[data-chart=functions]')?.dataset.points === '44'")
    for chart in ("functions", "spreads"):
        assert page.run(f"document.querySelector('[data-chart={chart}]').dataset.series") == "2"
        assert "accuracy" in page.text(f"[data-chart={chart}] .legend")
    assert "judge-44" in page.text("[data-chart=functions] .legend").replace("\n", "")
    assert page.run("document.querySelectorAll('figure.chart').length") == len(CHARTS) + 2


def test_page_draws_each_evaluation_with_its_interval(
    page: Browser, learner: RecordedLearner, tmp_path: Path
) -> None:
    assert page.run("document.querySelector('#evals').hidden")
    learner.evals = [
        *(recorded_eval("held-out", step, 0.2 + step / 60) for step in range(0, 41, 4)),
        *(recorded_eval(HOSTILE[:40], step, 0.1, samples=4) for step in (0, 20, 40)),
    ]
    soon(page, "document.querySelector('[data-eval=held-out]')?.dataset.points === '11'")
    assert "mean@1" in page.text("[data-eval=held-out] .legend")
    assert "0.867" in page.text("[data-eval=held-out] .legend")
    assert page.run("document.querySelectorAll('#eval-charts figure').length") == 2
    assert page.run("document.querySelectorAll('#eval-charts img').length") == 0
    assert page.run(
        "!document.querySelector('#evals').hidden && !document.querySelector('#evals-link').hidden"
    )
    page.run("document.querySelector('#evals').scrollIntoView()")
    page.screenshot(tmp_path / "evals.png")
    # Measured again after a resume: the later result of a policy counts.
    learner.evals.append(recorded_eval("held-out", 40, 0.5) | {"at_seconds": 5000.0})
    soon(page, "document.querySelector('[data-eval=held-out] .legend').textContent.includes('0.5')")
    assert page.run("document.querySelector('[data-eval=held-out]').dataset.points") == "11"
    assert page.run(CONNECTED)


def test_page_waits_politely_before_the_first_step(
    page: Browser, learner: RecordedLearner, server: Server
) -> None:
    learner.rows, learner.groups = [], []
    nothing = dict.fromkeys(
        ("policy_step", "tokens_per_second", "wait_ratio", "eta_seconds", "broker", "backlog")
    )
    learner.status |= {
        "step": 0,
        "fence": 5,
        "state": "created",
        "generators": [],
        "total_steps": None,
        **nothing,
    }
    page.open(server.url)
    soon(page, f"{CONNECTED} && {points('reward')} === 0")
    assert "No generator has connected" in page.text("#part-generators")
    soon(page, "document.querySelector('#samples-empty').innerText.includes('No group has been trained yet')")
    for word in ("NaN", "undefined", "null", "Infinity"):
        assert word not in page.text("body")


@pytest.mark.parametrize(
    ("width", "height", "is_phone"), [(1300, 900, False), (390, 844, True), (320, 640, True)]
)
def test_page_fits_the_width(page: Browser, width: int, height: int, is_phone: bool) -> None:
    page.resize(width, height, is_phone=is_phone)
    page.wait_for(f"innerWidth === {width} && document.documentElement.scrollWidth <= {width}")
    soon(
        page,
        f"[...document.querySelectorAll('canvas')].every(c => c.getBoundingClientRect().right <= {width})",
    )


def test_theme_follows_the_system_and_the_button_and_recolours_the_curves(
    page: Browser, tmp_path: Path
) -> None:
    light = colour_of(page, "accent")
    page.prefer_colours("dark")
    page.wait_for("matchMedia('(prefers-color-scheme: dark)').matches")
    dark = colour_of(page, "accent")
    assert dark != light
    assert colours(page, "grad_norm", tmp_path / "dark.png").get(dark, 0) > 20
    page.run("document.querySelector('#theme').click()")
    assert page.run("document.documentElement.dataset.theme") == "light"
    assert colours(page, "grad_norm", tmp_path / "light.png").get(light, 0) > 20
    page.run("localStorage.clear()")


def test_page_can_be_used_with_the_keyboard_alone(page: Browser) -> None:
    page.press("Tab")
    assert page.run("document.activeElement.className") == "skip"
    page.run("document.querySelector('[data-chart=reward]').focus()")
    before = page.run("document.activeElement.getAttribute('aria-label')")
    assert before.startswith("Mean reward at step 41: reward ")
    page.press("ArrowLeft")
    page.wait_for("document.activeElement.getAttribute('aria-label').startsWith('Mean reward at step 40')")
    assert page.text("[data-chart=nll] .chart-step") == "step 40", "the cursors move together"
    unnamed = "n => !n.innerText && !n.labels?.length && !n.getAttribute('aria-label')"
    assert page.run(f"[...document.querySelectorAll('button, select, input')].filter({unnamed}).length") == 0


def test_smoothing_and_range_change_what_is_drawn(page: Browser) -> None:
    choose = (
        "(n => {{ n.value = '{}'; n.dispatchEvent(new Event('change')); }})(document.querySelector('#{}'))"
    )
    page.run(choose.format("30", "range"))
    assert page.run(points("reward")) == 30
    page.run(choose.format("0.9", "smoothing"))
    assert page.run(points("reward")) == 30
