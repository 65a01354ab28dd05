"""A client of redis-py from a URL: one server, a cluster or a Sentinel group, with its TLS and passwords.

Certificate and password files are read at every connect, so that what replaces them is used from then on.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import redis
from redis import exceptions
from redis.cluster import RedisCluster
from redis.credentials import CredentialProvider
from redis.sentinel import Sentinel

from asympo.common.errors import BadSetting
from asympo.common.redaction import redact_url

_TLS_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_TLS_OPTIONS = (*_TLS_FILES, "ssl_check_hostname")
MAX_PASSWORD_BYTES = 4096
_SENTINEL = ("redis+sentinel", "rediss+sentinel")
_YES_NO = {"yes": True, "true": True, "no": False, "false": False}


def open_client(url: str, options: dict[str, Any]) -> Any:
    """The client; errors of redis-py for a server that cannot be reached, BadSetting for an unusable URL.

    `options`: of every connection. User and password of the servers come from the URL, else from
    REDIS_USERNAME and REDIS_PASSWORD or the file REDIS_PASSWORD_FILE; those of Sentinels from the same
    variables beginning with REDIS_SENTINEL_. TLS files are in the URL's query.
    """
    client, options = _unconnected(url, options)
    if urlsplit(url).scheme in _SENTINEL or not client.info("cluster").get("cluster_enabled"):
        return client
    client.close()
    del options["retry"]  # there it means following the slots of the cluster as they move
    return RedisCluster.from_url(url, **options)


def check_url(url: str) -> None:
    """Raises BadSetting for a URL that is unusable; asks no server."""
    client, _ = _unconnected(url, {})
    client.close()


def _unconnected(url: str, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A client of one server or of Sentinels, which connects when it is used, and its options."""
    try:
        parts = _parts(url)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        _check_tls(query)
        options = {**options, **_credentials("REDIS", is_in_url="@" in parts.netloc)}
        if parts.scheme in _SENTINEL:
            return _sentinel_client(url, options), options
        return redis.Redis.from_url(url, **options), options
    except ValueError as error:
        # Without its cause, which quotes what a parser took for a port.
        raise BadSetting(
            f"broker URL {redact_url(url)!r} is not usable ({error}): give redis://host:port/0, "
            "rediss:// for TLS, unix:///path/to/socket, redis+sentinel://host:port,host:port/service or "
            "rediss+sentinel://"
        ) from None


def _parts(url: str) -> SplitResult:
    """The URL's parts; ValueError without any of its password."""
    parts = urlsplit(url)
    try:
        is_sound = parts.scheme.endswith("+sentinel") or parts.port != 0
    except ValueError:
        is_sound = False
    # An "@" behind the servers: a character of the password has ended them too early.
    is_sound &= parts.scheme == "unix" or "@" not in parts.path + parts.fragment
    if not is_sound:
        raise ValueError("there is no such port: write special characters of a password as %XX")
    return parts


def read_password(name: str, path: Path) -> str:
    """The one line of a file; BadSetting, which begins with `name`, for a file that holds none."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_PASSWORD_BYTES + 1)
        password = content.decode().removesuffix("\n").removesuffix("\r")
    except OSError as error:
        raise BadSetting(f"{name} is {path}, which cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        password = ""
    if not password or len(content) > MAX_PASSWORD_BYTES or set(password) & {"\n", "\r", "\0"}:
        raise BadSetting(
            f"{name} is {path}, which holds no password: give a file with one line of text, of at most "
            f"{MAX_PASSWORD_BYTES} bytes"
        )
    return password


class PasswordFile(CredentialProvider):
    """User, and the password that is in a file when a connection is made."""

    def __init__(self, *, user: str | None, path: str) -> None:
        self._user, self._path = user, path

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        """Asked by redis-py at every connect."""
        try:
            password = read_password("the password file", Path(self._path))
        except BadSetting as error:
            # As while a Secret is replaced: worth another try.
            raise exceptions.ConnectionError(str(error)) from None
        return (self._user, password) if self._user else (password,)


def _credentials(prefix: str, *, is_in_url: bool = False) -> dict[str, Any]:
    """Of the environment, unless the URL has its own."""
    names = (f"{prefix}_USERNAME", f"{prefix}_PASSWORD", f"{prefix}_PASSWORD_FILE")
    user, password, path = (os.environ.get(name) or None for name in names)
    if is_in_url:
        return {}
    if path is not None:
        if password is not None:
            raise BadSetting(f"{names[1]} and {names[2]} are both given: give one of them")
        read_password(names[2], Path(path))
        return {"credential_provider": PasswordFile(user=user, path=path)}
    return {name: value for name, value in (("username", user), ("password", password)) if value}


def _check_tls(query: Mapping[str, str]) -> None:
    """Raises ValueError for TLS options that are none, and files that are not there."""
    for name, value in query.items():
        option = name.removeprefix("sentinel_")
        if option.startswith("ssl_") and option not in _TLS_OPTIONS:
            raise ValueError(f"there is no option {name}, choose from {', '.join(_TLS_OPTIONS)}")
        if option in _TLS_FILES and not os.access(value, os.R_OK):
            raise ValueError(f"{name} is {value}, which cannot be read")
    for prefix in ("", "sentinel_"):
        pair = [f"{prefix}{name}" for name in ("ssl_certfile", "ssl_keyfile")]
        if len(query.keys() & set(pair)) == 1:
            raise ValueError(f"{' and '.join(pair)} go together")


def _sentinel_client(url: str, options: dict[str, Any]) -> Any:
    parts = urlsplit(url)
    hosts = [pair.rpartition(":") for pair in parts.netloc.rpartition("@")[2].split(",")]
    service, _, database = parts.path.strip("/").partition("/")
    if not service or not all(host and port.isdigit() for host, _, port in hosts):
        raise ValueError("sentinel hosts with ports and a service name are needed")
    query = dict(parse_qsl(parts.query))
    unknown = query.keys() - {"sentinel_tls", *_TLS_OPTIONS, *(f"sentinel_{name}" for name in _TLS_OPTIONS)}
    if unknown:
        raise ValueError(f"there is no option {min(unknown)} with Sentinel")
    servers = {name: query[name] for name in _TLS_OPTIONS if name in query}
    sentinels = servers | {
        name: query[f"sentinel_{name}"] for name in _TLS_OPTIONS if f"sentinel_{name}" in query
    }
    is_tls = parts.scheme == "rediss+sentinel"
    are_sentinels_tls = _yes(query["sentinel_tls"]) if "sentinel_tls" in query else is_tls
    names = ("socket_timeout", "socket_connect_timeout", "retry")
    asked = {name: options[name] for name in names if name in options}
    sentinel = Sentinel(
        [(host, int(port)) for host, _, port in hosts],
        sentinel_kwargs={**asked, **_credentials("REDIS_SENTINEL"), **_tls(are_sentinels_tls, sentinels)},
    )
    given = {"username": parts.username, "password": parts.password}
    options = {**options, **{name: unquote(value) for name, value in given.items() if value}}
    return sentinel.master_for(service, db=int(database or 0), **options, **_tls(is_tls, servers))


def _tls(is_on: bool, given: Mapping[str, str]) -> dict[str, Any]:
    if not is_on:
        return {}
    checked: dict[str, Any] = dict(given)
    if "ssl_check_hostname" in given:
        checked["ssl_check_hostname"] = _yes(given["ssl_check_hostname"])
    return {"ssl": True, **checked}


def _yes(text: str) -> bool:
    if text.lower() not in _YES_NO:
        raise ValueError(f"{text!r} is neither yes nor no")
    return _YES_NO[text.lower()]
