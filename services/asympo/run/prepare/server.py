"""Generators that ask a server: what has to be said of it, and what cannot be done with one."""

from asympo.common.errors import BadSetting
from asympo.generator.settings import GeneratorSettings
from asympo.run.settings import RunFile


def check_server(file: RunFile, generator: GeneratorSettings) -> None:
    """Raises BadSetting when nobody would serve the policies that are to be measured."""
    if generator.engine != "openai":
        return
    if generator.openai.base_url is None:
        raise BadSetting("generator.engine is openai: give the server's address as generator.openai.base_url")
    asks_generators = file.evaluator_values.get("engine", "generators") == "generators"
    remedy = "set run.evaluate to false" if file.run.evaluate else "leave run.evals out"
    if generator.openai.reload == "none" and (file.run.evaluate or (file.run.evals and asks_generators)):
        raise BadSetting(
            "generator.openai.reload is none, so no generator serves the policies that are to be measured: "
            f"set it to what the server offers, or {remedy}"
        )
