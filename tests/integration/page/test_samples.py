"""The sample browser in headless Chromium."""

import json
from typing import Any

import pytest
from asympo.common.rollout_log.evals.sample import EvalResponse, EvalSample

from tests.integration.page.browser import Browser
from tests.integration.page.conftest import CONNECTED, HOSTILE, soon
from tests.integration.page.recorded import RecordedLearner, generator, recorded_eval, recorded_group

pytestmark = pytest.mark.chromium


def test_sample_browser_shows_responses_and_moves_by_keyboard(page: Browser) -> None:
    soon(page, "document.querySelectorAll('.group-option').length === 24")
    assert page.run("document.querySelectorAll('.response').length") == 8
    first = page.text("#group-detail h3")
    assert page.run("document.querySelectorAll('.response[data-advantage=positive] .advantage').length") > 0
    assert page.text(".response .badge") in ("stop", "length")
    page.run("document.querySelector('#group-list').focus()")
    page.press("ArrowDown")
    assert page.run("document.querySelector('#group-1').getAttribute('aria-selected')") == "true"
    assert page.text("#group-detail h3") != first
    assert not page.run("document.querySelector('#samples-follow').checked")


def test_sample_browser_keeps_a_chosen_group_when_newer_ones_arrive(
    page: Browser, learner: RecordedLearner
) -> None:
    soon(page, "document.querySelectorAll('.group-option').length === 24")
    page.run("document.querySelector('#group-2').click()")
    chosen = page.text("#group-detail h3")
    learner.groups = [recorded_group(900 - number) for number in range(24)]
    soon(page, "document.querySelectorAll('.group-option').length === 25")
    assert page.text("#group-detail h3") == chosen
    page.run("document.querySelector('#samples-follow').click()")
    assert page.text("#group-detail h3") != chosen


def choose(page: Browser, name: str, value: str) -> None:
    page.run(
        f"(n => {{ n.value = {json.dumps(value)}; n.dispatchEvent(new Event('change')); }})"
        f"(document.querySelector('#samples-{name}'))"
    )


def test_sample_browser_shows_what_is_asked_for_by_step_reward_function_and_prompt(
    page: Browser, learner: RecordedLearner
) -> None:
    shown = "document.querySelectorAll('.group-option').length"
    for group in learner.groups:
        group["responses"][0]["functions"] = {"length": group["step"]}
    soon(page, "document.querySelectorAll('#samples-function option').length === 2")
    steps = [group["step"] for group in learner.groups]
    choose(page, "steps", "40-41")
    page.wait_for(f"{shown} === {sum(step in (40, 41) for step in steps)}")
    choose(page, "steps", "41-40")
    page.wait_for("document.querySelector('#samples-empty').textContent.includes('40-41')")
    choose(page, "steps", "")
    choose(page, "function", "length")
    choose(page, "min", "41")
    page.wait_for(f"{shown} === {sum(step >= 41 for step in steps)}")
    choose(page, "max", "40")
    page.wait_for(f"{shown} === 0")
    for name in ("function", "min", "max"):
        choose(page, name, "")
    question = learner.groups[5]["prompt"].split("What is ")[1].split("?")[0]
    choose(page, "prompt", f"WHAT IS {question}")
    page.wait_for(f"{shown} === {sum(question + '?' in group['prompt'] for group in learner.groups)}")
    assert question in page.text(".prompt")
    assert page.run(CONNECTED)


def test_sample_browser_puts_two_policies_side_by_side(page: Browser, learner: RecordedLearner) -> None:
    early, late = recorded_group(9), recorded_group(9001) | {"step": 900}
    learner.groups = [late | {"prompt": early["prompt"], "asks": early["asks"]}, recorded_group(300), early]
    soon(page, "document.querySelectorAll('#samples-compare option').length === 2")
    assert page.run("document.querySelectorAll('.sides').length") == 0
    choose(page, "compare", f"{early['sequence']}/{early['group_id']}")
    page.wait_for("document.querySelectorAll('.sides section').length === 2")
    titles = page.run("[...document.querySelectorAll('.sides h4')].map(n => n.textContent)")
    assert titles == ["step 1: 8 responses", "step 900: 8 responses"]
    for side, group in enumerate((early, late)):
        texts = page.run(
            f"[...document.querySelectorAll('.sides section')[{side}].querySelectorAll('.response-text')]"
            ".map(n => n.textContent)"
        )
        assert texts == [each["text"] for each in group["responses"]]
    soon(page, "document.querySelectorAll('.sides section').length === 2")
    page.run("document.querySelector('#group-1').click()")
    page.wait_for("document.querySelector('#samples-compare') === null")


def test_sample_browser_shows_functions_unscored_responses_and_the_row(
    page: Browser, learner: RecordedLearner
) -> None:
    group = recorded_group(9001)
    group["responses"][0]["functions"] = {"accuracy": 1.0, "judge/length": 17.0}
    group["responses"][0]["notes"] = {"judge/why": HOSTILE}
    group["responses"][1]["num_segments"] = 3
    group["unscored"] = [{"text": HOSTILE, "reason": "judge: scoring took more than 10 s"}]
    group["columns"] = '{"answer": "4", "levels": [1, 2], "note": "<b>bold</b>"}'
    learner.groups = [group]
    soon(page, "document.querySelector('.unscored') !== null")
    assert page.text(".response-functions").split() == ["accuracy", "1", "judge/length", "17"]
    ends = page.run("[...document.querySelectorAll('.response-end')].map(n => n.textContent)")
    assert ["tokens in 3 segments" in end for end in ends[:2]] == [False, True]
    notes = "document.querySelectorAll('.response-functions')[1].textContent"
    assert page.run(notes) == f"judge/why {HOSTILE}"
    assert "judge: scoring took more than 10 s" in page.text(".unscored")
    assert page.run("document.querySelector('.unscored pre').textContent") == HOSTILE
    assert page.text(".row-columns").split("\n") == ["answer", "4", "levels", "[1,2]", "note", "<b>bold</b>"]
    learner.groups = [recorded_group(9002) | {"columns": '{"answer": "cut'}]
    soon(page, "document.querySelector('.row-columns')?.textContent.includes('cut off')")


def test_text_of_a_model_is_shown_and_never_executed(page: Browser, learner: RecordedLearner) -> None:
    hostile = recorded_group(9000, texts=[(HOSTILE, 1.0, "stop"), ("  ", 0.0, HOSTILE)])
    hostile |= {"prompt": HOSTILE, "group_id": HOSTILE}
    learner.groups = [hostile]
    learner.status |= {
        "model": HOSTILE,
        "reason": HOSTILE,
        "generators": [generator(1, holder=HOSTILE, state=HOSTILE)],
    }
    learner.status["broker"] = {"server": HOSTILE, "version": HOSTILE, "warnings": [HOSTILE]}
    learner.status["warnings"] = [{"text": HOSTILE, "level": "error", "count": 2}]
    soon(page, "document.querySelector('.response-text')?.textContent.includes('onerror')")
    assert page.run("document.querySelector('.response-text').textContent") == HOSTILE
    assert page.run("document.querySelector('.prompt').textContent") == HOSTILE
    assert "(no visible text)" in page.text(".responses")
    assert page.run("document.querySelectorAll('main img, main script, main b').length") == 0
    assert page.run("window.owned") is None
    assert "owned" not in page.run("document.title")


def test_hidden_samples_say_how_to_show_them(page: Browser, learner: RecordedLearner) -> None:
    learner.hides_samples = True
    soon(page, "document.querySelector('#samples-empty').textContent.includes('--show-samples')")
    assert page.run("document.querySelectorAll('.group-option').length") == 0
    assert page.run(CONNECTED)


def test_sample_browser_shows_what_two_policies_answered_in_an_evaluation(
    page: Browser, learner: RecordedLearner
) -> None:
    def answered(step: int, text: str, reward: float | None, number: int) -> dict[str, Any]:
        response = EvalResponse(
            text=text, reward=reward, functions={"own": 0.5}, reason=HOSTILE, num_tokens=7
        )
        sample = EvalSample(
            eval="gsm8k", policy_step=step, prompt="1+1=", answer="2", responses=(response,), at_seconds=1.0
        )
        return sample.to_group(number=number)

    learner.evals = [recorded_eval("gsm8k", 20, 0.5), recorded_eval("gsm8k", 40, 0.6)]
    learner.answers = [answered(20, "3", 0.0, 0), answered(40, HOSTILE, 1.0, 1), answered(60, "x", None, 2)]
    soon(page, "document.querySelectorAll('#samples-eval option').length === 2")
    choose(page, "eval", "gsm8k")
    page.wait_for("document.querySelectorAll('.group-option').length === 3")
    assert page.text("#group-detail h3") == "Evaluation gsm8k"
    assert HOSTILE in page.text(".unscored")
    page.run("document.querySelector('#group-1').click()")
    soon(page, "document.querySelectorAll('#samples-compare option').length === 3")
    choose(page, "compare", "0/gsm8k")
    page.wait_for("document.querySelectorAll('.sides section').length === 2")
    titles = page.run("[...document.querySelectorAll('.sides h4')].map(n => n.textContent)")
    assert titles == ["policy 20: 1 response", "policy 40: 1 response"]
    texts = page.run("[...document.querySelectorAll('.sides .response-text')].map(n => n.textContent)")
    assert texts == ["3", HOSTILE]
    assert page.run("document.querySelectorAll('.sides .advantage, .sides .badge').length") == 0
    choose(page, "eval", "")
    page.wait_for("document.querySelectorAll('.group-option').length === 24")
    assert page.run(CONNECTED)
