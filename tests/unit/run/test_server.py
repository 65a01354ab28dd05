"""A run file whose generators ask a server."""

import pytest
from asympo.common.errors import BadSetting
from asympo.common.settings import validate
from asympo.generator.settings import GeneratorSettings
from asympo.run.prepare.server import check_server
from asympo.run.settings import take_apart


def check(reload: str, *, evaluator: str = "generators", **run: object) -> None:
    server = {"base_url": "http://127.0.0.1:1/v1", "reload": reload}
    sections = {"run": run, "generator": {"engine": "openai", "openai": server}}
    file = take_apart(sections | {"evaluator": {"engine": evaluator}}, source="run.toml")
    check_server(file, validate(GeneratorSettings, file.generator_values))


def test_server_that_keeps_its_weights_measures_no_policies() -> None:
    evals = [{"name": "sums", "data": "sums.jsonl"}]
    with pytest.raises(BadSetting, match=r"or set run\.evaluate to false$"):
        check("none")
    with pytest.raises(BadSetting, match=r"or leave run\.evals out$"):
        check("none", evaluate=False, evals=evals)
    check("none", evaluate=False, evals=evals, evaluator="vllm")
    check("none", evaluate=False)
    check("sglang", evals=evals)


def test_server_without_an_address_is_refused() -> None:
    file = take_apart({"generator": {"engine": "openai"}}, source="run.toml")
    with pytest.raises(BadSetting, match=r"give the server's address as generator\.openai\.base_url"):
        check_server(file, validate(GeneratorSettings, file.generator_values))
