"""No secret is shown, however it is written, and what is none stays readable."""

import ast
import io
import logging
from pathlib import Path

import asympo
import pytest
from asympo.common.errors import BadSetting, BrokerUnavailable
from asympo.common.redaction import redact_text, redact_url, redacted
from asympo.common.rollout_log import Broker
from asympo.common.telemetry import MAX_MESSAGE_CHARS, set_up_logging
from hypothesis import given
from hypothesis import strategies as st

URLS = {
    "redis://u:{}@h:1/0": "redis://u:***@h:1/0",
    "redis://:{}@h/0": "redis://:***@h/0",
    "redis+sentinel://u:{}@a:1,b:2/name": "redis+sentinel://u:***@a:1,b:2/name",
    "redis://h:1/0?password={}": "redis://h:1/0?password=***",
    "unix:///s?PASS%77ORD={}": "unix:///s?PASS%77ORD=***",
    "rediss://h/0?ssl_ca_certs=/c&sentinel_password={}": "rediss://h/0?ssl_ca_certs=/c&sentinel_password=***",
    "https://{}@collector:4318": "https://***@collector:4318",
    "https://collector/x?api-key={}": "https://collector/x?api-key=***",
}
awkward = st.text("secrt0189/?#&@:;%[]='\" \\", min_size=6).map(lambda text: f"Planted{text}Planted")


@given(st.sampled_from(sorted(URLS)), awkward)
def test_url_hides_a_password_with_any_characters(url: str, password: str) -> None:
    assert redact_url(url.format(password)) == URLS[url]
    values = {"redis_url": url.format(password), "each": [{"redis_url": url.format(password)}]}
    assert redacted(values) == {"redis_url": URLS[url], "each": [{"redis_url": URLS[url]}]}


@pytest.mark.parametrize(
    "url",
    [
        *("redis://[x", "redis://127.0.0.1:6379/0", "unix:///tmp/socket", "https://[::1]:8080/page?after=3"),
        *("redis+sentinel://a:1,b:2/name/0", "s3://bucket/some/prefix", "redis://host:port/0", "no URL", ""),
    ],
)
def test_url_without_a_secret_is_shown_as_it_is(url: str) -> None:
    assert redact_url(url) == url
    assert redact_text(f"cannot open ({url!r}), or {url}.") == f"cannot open ({url!r}), or {url}."


def test_password_without_its_server_is_not_taken_for_one() -> None:
    assert redact_url("redis://:hunter2") == "redis://***"
    assert redact_url("redis://user:hun/ter2") == "redis://***"


def test_settings_of_secret_names_are_masked_and_others_are_not() -> None:
    secret = {"api_key": "k", "PASSWORD": 5, "hf_token": ["a", "b"], "nested": {"client_secret": "c"}}
    assert redacted(secret) == {
        "api_key": "***",
        "PASSWORD": "***",
        "hf_token": ["***", "***"],
        "nested": {"client_secret": "***"},
    }
    plain = {
        "max_tokens": 8,
        "tokenizer": "t",
        "token_budget": 1,
        "run": "r",
        "password": None,
        "text": "a=b",
    }
    assert redacted(plain) == plain


def test_text_hides_what_other_libraries_quote() -> None:
    assert redact_text("AUTH failed (redis://u:pw@h:1/0)") == "AUTH failed (redis://u:***@h:1/0)"
    assert redact_text("url: /v1/traces?api_key=abc&x=1") == "url: /v1/traces?api_key=***&x=1"
    assert redact_text("connect(host='h', password='a b c')") == "connect(host='h', password=***)"
    assert redact_text("{'api_key': 'abc', \"n\": 1}") == '{\'api_key\': "***", "n": 1}'
    assert redact_text("Authorization: Bearer abc.def") == "Authorization: ***"
    plain = "check user, password and ACL; num_tokens=5, redis://host:port/0, at http://127.0.0.1:80/."
    assert redact_text(plain) == plain


@given(st.text("a:/@='\"?&token \n", max_size=4000))
def test_text_of_any_form_is_redacted_at_once(text: str) -> None:
    redact_text(text)


def test_long_text_takes_no_time_that_grows_with_its_square() -> None:
    for piece in ("a", "://", "token='", 'a"', "a@", "https://a ", "?", "authorization:"):
        redact_text(piece * (1_000_000 // len(piece)))


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_log_lines_hide_secrets_and_end(log_format: str) -> None:
    stream, url = io.StringIO(), "redis://u:hunter2@h:1/0"
    root = logging.getLogger()
    handlers = root.handlers[:]
    try:
        set_up_logging(service="x", log_format=log_format, stream=stream)  # type: ignore[arg-type]
        try:
            raise ValueError(f"cannot reach {url}")
        except ValueError:
            logging.getLogger("y").exception("To %s", url, extra={"broker": url, "api_key": "hunter2"})
        logging.getLogger("y").warning("z" * 3_000_000)
    finally:
        root.handlers[:] = handlers
    shown = stream.getvalue()
    assert "hunter2" not in shown
    assert shown.count("redis://u:***@h:1/0") == 3
    assert len(shown) < 3 * MAX_MESSAGE_CHARS
    assert "more characters" in shown


def test_errors_hide_secrets() -> None:
    assert str(BrokerUnavailable("no answer from redis://:hunter2@h")) == "no answer from redis://:***@h"
    for url in ("redis://:hunter2#x@h:1", "redis://:1/hunter2@h", "redis://h:hunter2/0", "http://:hunter2@h"):
        with pytest.raises(BadSetting) as raised:
            Broker.connect(url)
        assert "hunter2" not in str(raised.value)
        assert raised.value.__cause__ is None
        assert "hunter2" not in repr(raised.value.__context__)


def test_no_sentence_that_is_raised_is_taken_for_a_secret() -> None:
    """What tells a caller how a token is shown must not be masked on its way to him."""
    masked = [
        f"{path.name}:{text.lineno} {text.value}"
        for path in Path(asympo.__file__).parent.rglob("*.py")
        for raised in ast.walk(ast.parse(path.read_text()))
        if isinstance(raised, ast.Raise)
        for text in ast.walk(raised)
        if isinstance(text, ast.Constant) and isinstance(text.value, str)
        if redact_text(text.value) != text.value
    ]
    assert masked == []
