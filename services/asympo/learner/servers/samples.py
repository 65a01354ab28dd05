"""`/v1/samples`: groups of the steps made, or answers of evaluations, newest first, those asked for."""

from collections.abc import Callable

from fastapi import FastAPI, Query
from fastapi.responses import PlainTextResponse, Response

from asympo.common.archive.choice import Choice, parse_steps
from asympo.common.errors import BadSetting
from asympo.common.jsonl import to_json
from asympo.learner.samples import SampleStore

SAMPLES_HIDDEN = "prompts and responses are not shown: start the learner with --show-samples\n"


def add_samples(
    api: FastAPI,
    *,
    samples: Callable[[], SampleStore | None],
    evaluated: Callable[[], SampleStore | None] = lambda: None,
) -> None:
    """Both give None while they are hidden."""

    @api.get("/v1/samples")
    def show(
        limit: int = Query(default=8, ge=1, le=64),
        steps: str = Query(default="", max_length=40),
        function: str = Query(default="", max_length=200),
        at_least: float | None = None,
        at_most: float | None = None,
        prompt: str = Query(default="", max_length=1000),
        asks: str = Query(default="", max_length=16),
        evaluation: str = Query(default="", max_length=64, alias="eval"),
    ) -> Response:
        store = evaluated() if evaluation else samples()
        if store is None:
            return PlainTextResponse(SAMPLES_HIDDEN, status_code=403)
        try:
            first, last = parse_steps(steps) if steps else (None, None)
        except BadSetting as error:
            return PlainTextResponse(f"{error}\n", status_code=400)
        choice = Choice(
            first_step=first,
            last_step=last,
            function=function,
            at_least=at_least,
            at_most=at_most,
            prompt=prompt,
        )
        groups = store.newest(limit=limit, choice=choice, asks=asks, evaluation=evaluation)
        return Response(to_json({"groups": groups}), media_type="application/json")
