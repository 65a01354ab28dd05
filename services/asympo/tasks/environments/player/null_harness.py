"""The null harness of verifiers in the interpreter that plays: it fetches and installs nothing."""

import sys
from typing import Any

from verifiers.v1.harnesses.null.harness import NullHarness

__all__ = ["HereNullHarness"]


class HereNullHarness(NullHarness):
    """Its chat program needs only packages that verifiers itself needs."""

    async def setup(self, runtime: Any) -> None:
        """Nothing to install."""

    async def launch(self, ctx: Any, trace: Any, runtime: Any, *arguments: Any, **options: Any) -> Any:
        return await super().launch(ctx, trace, HereRuntime(runtime), *arguments, **options)


class HereRuntime:
    """A runtime whose scripts run in this interpreter, where verifiers would have `uv` make another."""

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runtime, name)

    async def prepare_uv_script(self, script: str | bytes, *_: Any, **options: Any) -> list[str]:
        await self._runtime.write("program.py", script.encode() if isinstance(script, str) else script)
        return [sys.executable, "program.py"]
