"""What of a setting, a URL or a line of text may be shown: everything but the secrets in it.

The one home of it, for printers, log lines and errors. URLs are taken apart as a person writes them: a
password with characters that a URL would escape ends at the last "@", not where a parser of URLs stops.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote_plus

MASK = "***"

_NAMES = (
    r"(?:passw(?:or)?d|passphrase|pwd|secret(?:[_-]?access)?(?:[_-]?key)?|token|api[_-]?key|private[_-]?key|"
    r"credentials?|signature|authorization)"
)
_SECRET_NAME = re.compile(rf"{_NAMES}\Z", re.IGNORECASE)
_ADDRESS_NAME = re.compile(r"(?:notify|webhook)[_-]?url\Z", re.IGNORECASE)
_RATE_NAME = re.compile(r"_per_token\Z")
_PARAMETER = re.compile(r"[?&;#]([^=&?;#]*)=")
_USER = re.compile(r"([A-Za-z0-9_.-]*):")
# Our own sentences write "port" where a number belongs.
_HOST = re.compile(r"(?:\[[^\[\]]*\]?|[^:\[\]]+)(?::(?:\d{0,5}|port|PORT),?)?|")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,30}://\S*?)([)\]}>.,;:!?'\"]*(?!\S))")
_VALUE = r"(?:\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'|[^\s,;&)\]}\"']+)"
_ASSIGNED = re.compile(rf"({_NAMES}[\"']?\s?=\s?){_VALUE}", re.IGNORECASE)
_QUOTED = re.compile(
    rf"([\"'][\w.-]{{0,64}}{_NAMES}[\"']\s*:\s*)(?:\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*')", re.IGNORECASE
)
_HEADER = re.compile(r"(authorization[\"']?\s*[:=]\s*)(?:(?:basic|bearer)\s+)?[^\s,\"']+", re.IGNORECASE)


def redact_url(url: str) -> str:
    """The URL without what is before its last "@", a broker's user excepted, and secret parameters."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    tail = ""
    for parameter in _PARAMETER.finditer(rest):
        if _SECRET_NAME.search(unquote_plus(parameter[1])):
            # To the very end: a value with "&" or "#" in it goes on behind them.
            rest, tail = rest[: parameter.end()], MASK
            break
    before, at, after = rest.rpartition("@")
    if at:
        # A broker's users have names; what comes first in another address may be a token.
        user = _USER.match(before) if scheme.startswith("redis") else None
        return f"{scheme}://{user[0] if user else ''}{MASK}@{after}{tail}"
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if not all(_HOST.fullmatch(host) for host in authority.split(",")):
        return f"{scheme}://{MASK}"
    return f"{scheme}://{rest}{tail}"


def redact_text(text: str) -> str:
    """A sentence, a log message or a traceback without the secrets of the URLs and assignments in it."""
    if "://" in text:
        text = _URL.sub(lambda found: redact_url(found[1]) + found[2], text)
    text = _ASSIGNED.sub(rf"\1{MASK}", text)
    text = _QUOTED.sub(rf'\1"{MASK}"', text)
    return _HEADER.sub(rf"\1{MASK}", text)


def redacted(values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy fit for printing: values of secret names, and secrets within URLs, are masked."""
    return {key: redact_value(str(key), value) for key, value in values.items()}


def redacted_arguments(arguments: Sequence[str]) -> list[str]:
    """A command line: `--name value` and `--name=value` are masked as settings of the name."""
    shown, name = list[str](), ""
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if flag.startswith("--") and equals:
            shown.append(f"{flag}={redact_value(_setting(flag), value)}")
        else:
            shown.append(str(redact_value(name, argument)))
        name = _setting(flag) if flag.startswith("--") and not equals else ""
    return shown


def _setting(flag: str) -> str:
    return flag.rpartition(".")[2].removeprefix("--").replace("-", "_")


def redact_value(name: str, value: Any) -> Any:
    """One value of a setting, lists and tables included."""
    if isinstance(value, Mapping):
        return redacted(value)
    if isinstance(value, list | tuple):
        return type(value)(redact_value(name, item) for item in value)
    if value is None or value == "" or isinstance(value, bool):
        return value
    if isinstance(value, str) and _ADDRESS_NAME.search(name):
        # Who may write to it is often part of the path.
        scheme, separator, rest = value.partition("://")
        return value if rest == _host(rest) else f"{scheme}{separator}{_host(rest)}/{MASK}"
    if _SECRET_NAME.search(name) and not _RATE_NAME.search(name):
        return MASK
    return _redact_whole(value) if isinstance(value, str) else value


def _host(rest: str) -> str:
    """Of a URL behind its scheme; nothing where a password may reach into what looks like it."""
    return "" if "@" in rest else re.split(r"[/?#]", rest, maxsplit=1)[0]


def _redact_whole(value: str) -> str:
    """A value that is one URL may have spaces in its password; any other is text."""
    scheme, separator, _ = value.partition("://")
    is_url = bool(separator) and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme) is not None
    return redact_url(value) if is_url else redact_text(value)
