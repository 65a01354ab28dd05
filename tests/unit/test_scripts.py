"""Words that scripts and Python share: each side knows what the other says."""

import re

import pytest
from asympo.common.rollout_log import AppendOutcome, RefusalReason, RunState
from asympo.common.rollout_log.keys import NOUNS
from asympo.common.rollout_log.lua import load_script, script_names

CHOSEN_BY_CALLER = {"copy", "delete", "put_back"}


@pytest.mark.parametrize("name", script_names())
def test_head_of_a_script_names_its_keys_in_the_order_of_use(name: str) -> None:
    script = load_script(name)
    assert (script.nouns == ()) is (name in CHOSEN_BY_CALLER)
    assert set(script.nouns) <= set(NOUNS)
    for names in re.findall(r"^local ([a-z_, ]+) = unpack\(KEYS\)$", script.source, re.MULTILINE):
        assert tuple(names.split(", ")) == script.nouns
    used = [int(number) for number in re.findall(r"KEYS\[(\d+)\]", script.source)]
    if script.nouns:
        assert max(used, default=len(script.nouns)) <= len(script.nouns)


def test_acquire_gives_the_reasons_that_python_knows() -> None:
    given = set(re.findall(r"refuse\('(\w+)'", load_script("acquire").source))
    assert given == {reason.value for reason in RefusalReason}


def test_append_replies_outcomes_that_python_knows() -> None:
    source = load_script("append").source
    given = re.findall(r"return (?:\{|refuse\()'(\w+)'", source)
    assert {word.lower() for word in given} == {outcome.value for outcome in AppendOutcome}


def test_scripts_speak_of_states_that_a_run_can_have() -> None:
    word = re.compile(r"state [~=]= '(\w+)'|'HSET', \S+, 'state', '(\w+)'")
    pairs = (pair for name in script_names() for pair in word.findall(load_script(name).source))
    found = {one or other for one, other in pairs}
    assert found == {state.value for state in RunState}
