"""What the page's server refuses and what it sends along."""

from pathlib import Path

import pytest
from asympo.common.errors import BadSetting
from asympo.learner.page.mount import mount_page
from fastapi import FastAPI
from fastapi.testclient import TestClient

from tests.integration.page.recorded import RecordedLearner

PAGE = Path(__file__).parents[3] / "services" / "asympo" / "learner" / "page"


@pytest.fixture(scope="module")
def client() -> TestClient:
    return TestClient(RecordedLearner.at_step(3).application(), base_url="http://127.0.0.1:8080")


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.1:8080",
        "localhost:8080",
        "LOCALHOST",
        "[::1]:8080",
        "127.8.9.1",
        "asympo.localhost",
        "asympo.example.com",
        "ASymPO.Example.com.:443",
    ],
)
def test_page_and_json_answer_under_loopback_and_allowed_names(client: TestClient, host: str) -> None:
    for path in ("/", "/page/app.js", "/v1/status"):
        assert client.get(path, headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "evil.asympo.example.com",
        "10.0.0.7:8080",
        "",
        "[::2]",
        "2130706433",
        "asympo.example.com@evil.example",
        "asympo.example.com:80:80",
    ],
)
def test_page_and_json_are_refused_under_any_other_name(client: TestClient, host: str) -> None:
    for path in ("/", "/page/app.js", "/v1/status", "/v1/samples", "/no-such-path"):
        reply = client.get(path, headers={"Host": host})
        assert reply.status_code == 421
        assert "is not allowed" in reply.text


def test_health_answers_under_any_name_because_orchestrators_use_the_pods_address(client: TestClient) -> None:
    assert client.get("/livez", headers={"Host": "10.244.0.9:8080"}).status_code == 200


@pytest.mark.parametrize(
    "host", ["http://asympo.example.com", "asympo.example.com:8080", "*.example.com", "a b", ""]
)
def test_allowed_host_that_is_no_name_is_a_bad_setting(host: str) -> None:
    with pytest.raises(BadSetting, match="is not a host name; give the name alone"):
        mount_page(FastAPI(), allowed_hosts=[host])


def test_answers_carry_strict_headers(client: TestClient) -> None:
    for path in ("/", "/page/style.css", "/v1/status"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"


def test_files_come_from_a_closed_list_with_types_and_etags(client: TestClient) -> None:
    reply = client.get("/page/app.js")
    assert reply.headers["content-type"] == "text/javascript; charset=utf-8"
    assert client.get("/page/app.js", headers={"If-None-Match": reply.headers["etag"]}).status_code == 304
    for name in ("mount.py", "__init__.py", "../mount.py", "%2e%2e%2fmount.py", "absent.js", ""):
        assert client.get(f"/page/{name}").status_code == 404


def test_page_needs_nothing_from_elsewhere_and_never_parses_text_as_markup() -> None:
    own = [
        path
        for path in PAGE.iterdir()
        if path.suffix in (".html", ".js", ".css") and "uPlot" not in path.name
    ]
    assert len(own) >= 7
    for path in own:
        text = path.read_text()
        for word in (
            "http:",
            "https:",
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
        ):
            assert word not in text, f"{path.name} holds {word}"
        assert len(text.splitlines()) < 400
    assert "MIT" in (PAGE / "uPlot.LICENSE.txt").read_text()
