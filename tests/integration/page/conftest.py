"""A headless Chromium, and a server that answers as a learner does."""

from collections.abc import Iterator

import pytest
from asympo.local.ports import free_port

from tests.conftest import require
from tests.integration.page.browser import Browser, find_chromium
from tests.integration.page.recorded import RecordedLearner, Server

CONNECTED = "document.body.dataset.connection === 'connected'"
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>window.owned=1</script></pre><b>bold</b>"


def points(chart: str) -> str:
    return f"Number(document.querySelector('[data-chart={chart}]').dataset.points)"


def soon(page: Browser, expression: str) -> None:
    """Wait until the page shows it, asking the learner at once instead of at the next turn."""
    page.wait_for(f"(document.querySelector('#retry').click(), {expression})")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    binary = find_chromium()
    require(binary is not None, "chromium (apt-get install chromium)")
    assert binary is not None
    browser = Browser(binary=binary, profile=tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.fixture
def learner() -> RecordedLearner:
    return RecordedLearner.at_step(41)


@pytest.fixture
def server(learner: RecordedLearner) -> Iterator[Server]:
    server = Server(learner.application(), port=free_port())
    server.start()
    yield server
    server.stop()


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Browser]:
    browser.problems.clear()
    browser.requested.clear()
    browser.resize(1300, 900)
    browser.prefer_colours("light")
    browser.open(server.url)
    browser.wait_for(f"{CONNECTED} && {points('reward')} === 41")
    yield browser
    assert browser.problems == []
    assert all(url.startswith((server.url, "about:")) for url in browser.requested), "asked another server"
    browser.open("about:blank")
