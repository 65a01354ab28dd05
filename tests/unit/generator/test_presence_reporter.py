"""What a generator tells of itself, and to whom it makes no difference."""

import asyncio
import threading
from typing import Any, cast
from unittest.mock import MagicMock

import pytest
from asympo.common.errors import AsympoError, BrokerRefused, BrokerUnavailable
from asympo.common.rollout_log.broker.calls import Calls
from asympo.generator.presence_reporter import PresenceReporter


class SlowPresence:
    """The list, whose first report is on its way for as long as the test wants."""

    def __init__(self) -> None:
        self.begun, self.may_end = threading.Event(), threading.Event()
        self.heard: list[float] = []

    def report(self, holder: str, status: dict[str, Any], *, ttl_seconds: float) -> None:
        if ttl_seconds:
            self.begun.set()
            assert self.may_end.wait(30)
        self.heard.append(ttl_seconds)


def test_goodbye_is_the_last_word_even_beside_a_report_that_was_cancelled() -> None:
    presence = SlowPresence()
    calls = Calls(max_threads=4, on_broker_error=lambda: None)
    reporter = PresenceReporter(
        generator=cast(Any, MagicMock(parts=None, holder="one", not_ready_reason=None)),
        run_log=cast(Any, MagicMock(presence=presence)),
        calls=calls,
        metrics=MagicMock(),
        interval_seconds=1.0,
    )

    async def leave() -> None:
        reporting = asyncio.ensure_future(reporter.run())
        await asyncio.to_thread(presence.begun.wait)
        reporting.cancel()
        await asyncio.wait({reporting})
        goodbye = asyncio.ensure_future(reporter.say_goodbye())
        # Others may still claim a policy while everything ends.
        late = asyncio.ensure_future(reporter.report())
        await asyncio.sleep(0)
        presence.may_end.set()
        await asyncio.gather(goodbye, late)

    asyncio.run(leave())
    calls.close()
    assert presence.heard[0] > 0
    assert presence.heard[1:] == [0]


@pytest.mark.parametrize(("error", "is_answering"), [(BrokerRefused, True), (BrokerUnavailable, False)])
def test_report_that_is_not_taken_ends_no_generator_and_is_told_once(
    error: type[AsympoError], is_answering: bool, caplog: pytest.LogCaptureFixture
) -> None:
    generator = MagicMock(parts=None, holder="one", not_ready_reason=None, is_broker_answering=True)
    presence = MagicMock(report=MagicMock(side_effect=error("ERR a short status is needed")))
    calls = Calls(max_threads=1, on_broker_error=lambda: None)
    reporter = PresenceReporter(
        generator=generator,
        run_log=cast(Any, MagicMock(presence=presence)),
        calls=calls,
        metrics=MagicMock(),
        interval_seconds=1.0,
    )

    async def tell() -> None:
        await reporter.report()
        await reporter.report()
        await reporter.say_goodbye()

    asyncio.run(tell())
    calls.close()
    assert generator.is_broker_answering is is_answering
    assert presence.report.call_count == 3
    assert len(caplog.messages) == 1
