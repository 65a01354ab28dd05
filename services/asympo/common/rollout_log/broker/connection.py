"""One broker: connecting, retrying, turning its refusals into our errors.

Every command sent through here is a read, one of our scripts, or the HSETNX of a payload, and may be run
twice with the same effect (each script says how in its head). That is what makes blind retries after a lost
connection safe.
"""

import dataclasses
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import urlsplit

from redis import exceptions
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster
from redis.retry import Retry

from asympo.common.errors import BrokerFull, BrokerRefused, BrokerUnavailable
from asympo.common.redaction import redact_url
from asympo.common.rollout_log.broker.client import open_client
from asympo.common.rollout_log.broker.server_info import BrokerInfo, describe, load_counters
from asympo.common.rollout_log.keys import PREFIX, run_of_key
from asympo.common.rollout_log.lua import load_script, script_names

T = TypeVar("T")

_RETRIED = (
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.BusyLoadingError,
    exceptions.ReadOnlyError,
    exceptions.ClusterDownError,
    OSError,
)
_REFUSALS = (exceptions.AuthenticationError, exceptions.AuthorizationError, exceptions.NoPermissionError)
_TRANSIENT_CODES = (
    "MISCONF",
    "NOREPLICAS",
    "MASTERDOWN",
    "LOADING",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "UNBLOCKED",
    "BUSY",
    "STRAY",
)


class JitteredBackoff:
    """Doubling delay, drawn between half and all of its bound, so that parts do not come back in step."""

    def __init__(self, *, base_seconds: float, cap_seconds: float, rng: random.Random) -> None:
        self._base, self._cap, self._rng = base_seconds, cap_seconds, rng

    def delay_seconds(self, failures: int) -> float:
        """How long to wait after this many failures in a row."""
        bound = min(self._cap, self._base * 2.0 ** min(failures, 30))
        return bound * (0.5 + 0.5 * self._rng.random())


class _Retrying:
    """Calls again after errors that time may heal."""

    def __init__(self, *, backoff: JitteredBackoff, max_retries: int) -> None:
        self._backoff, self._max_retries = backoff, max_retries

    def call(self, send: Callable[[], T]) -> T:
        """The result of `send`; its last error after `max_retries` retries."""
        failures = 0
        while True:
            try:
                return send()
            except _RETRIED as error:
                failures += 1
                if isinstance(error, _REFUSALS) or failures > self._max_retries:
                    raise
                time.sleep(self._backoff.delay_seconds(failures))


class Broker:
    """A connection pool to one Redis, Valkey, Sentinel group or Cluster. Safe to share between threads."""

    def __init__(self, *, client: Any, url: str, block_slice_seconds: float, retrying: "_Retrying") -> None:
        self.client = client
        self.url = url
        """For people: without its password."""
        self.block_slice_seconds = block_slice_seconds
        """Longest single blocking read; longer waits are made of several."""
        self._retrying = retrying

    @classmethod
    def connect(
        cls,
        url: str,
        *,
        socket_timeout_seconds: float = 5.0,
        connect_timeout_seconds: float = 5.0,
        max_retries: int = 8,
        backoff_base_seconds: float = 0.05,
        backoff_cap_seconds: float = 2.0,
        rng: random.Random | None = None,
    ) -> "Broker":
        """Connects and checks the server.

        `url`: redis://, rediss:// (TLS), unix:// or redis+sentinel://host:port,host:port/service; see
        open_client for TLS and passwords. A server in cluster mode is recognised. Raises BadSetting (URL),
        BrokerUnavailable (silent), BrokerRefused (too old, no access).
        """
        backoff = JitteredBackoff(
            base_seconds=backoff_base_seconds, cap_seconds=backoff_cap_seconds, rng=rng or random.Random()
        )
        options: dict[str, Any] = {
            "socket_timeout": socket_timeout_seconds,
            "socket_connect_timeout": connect_timeout_seconds,
            # A unix socket has no network to keep alive, and redis-py refuses the option there.
            **({} if urlsplit(url).scheme == "unix" else {"socket_keepalive": True}),
            # redis-py retries the connection inside each retry of a command; one loop of ours bounds both.
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,
        }
        shown = redact_url(url)
        retrying = _Retrying(backoff=backoff, max_retries=max_retries)
        with _our_errors(shown):
            client = retrying.call(lambda: open_client(url, options))
        broker = cls(
            client=client, url=shown, block_slice_seconds=socket_timeout_seconds / 2, retrying=retrying
        )
        try:
            broker.info()
        except BaseException:
            broker.close()
            raise
        return broker

    def info(self, *, key: str | None = None) -> BrokerInfo:
        """Server, version, durability and what may be lost with it. Raises BrokerRefused when too old.

        Of a cluster it is the master of `key`, else the first one with the warnings of all.
        """
        with _our_errors(self.url):
            described = self._retrying.call(lambda: [self._describe(node) for node in self._masters(key)])
        infos = [describe(fields, config, url=self.url) for fields, config in described]
        warnings = dict.fromkeys(warning for info in infos for warning in info.warnings)
        return dataclasses.replace(infos[0], warnings=tuple(warnings))

    def _masters(self, key: str | None) -> list[Any]:
        """Nodes of a cluster; [None] for any other broker."""
        if not isinstance(self.client, RedisCluster):
            return [None]
        return [self.client.get_node_from_key(key)] if key else self.client.get_primaries()

    def _describe(self, node: Any) -> tuple[dict[str, Any], dict[str, str]]:
        target = {} if node is None else {"target_nodes": node}
        fields = self.client.info(**target)
        try:
            found = [self.client.config_get(names, **target) for names in ("append*", "maxmemory*")]
        except exceptions.ResponseError as error:
            # CONFIG is commonly withheld from service users, or by who runs the server; INFO tells less.
            if isinstance(error, exceptions.NoPermissionError) or "unknown command" in str(error):
                return fields, {}
            raise
        return fields, {name: value for part in found for name, value in part.items()}

    def load_counters(self) -> dict[str, float]:
        """The broker's own account of its work so far; 0 for what this server does not count."""
        with _our_errors(self.url):
            return load_counters(self._retrying.call(lambda: self.client.info("everything")))

    def run_names(self) -> list[str]:
        """Runs that have a config on this broker, sorted."""
        pattern = f"{PREFIX}{{*}}:config"
        with _our_errors(self.url):
            found = self._retrying.call(lambda: list(self.client.scan_iter(match=pattern, count=1000)))
        names = (run_of_key(name.decode()) for name in found)
        return sorted({name for name in names if name})

    def command(self, *parts: Any) -> Any:
        """Sends one read command; raises our errors."""
        with _our_errors(self.url):
            return self._retrying.call(lambda: self.client.execute_command(*parts))

    def run_script(self, name: str, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        """Runs one of the scripts by digest, loading all where the server does not know it yet.

        Raises BrokerUnavailable when it does not, and this user may not load it.
        """
        script = load_script(name)

        def send() -> Any:
            parts = (len(keys), *keys, *arguments)
            try:
                return self.client.execute_command("EVALSHA", script.sha1, *parts)
            except exceptions.NoScriptError:
                if self._load_scripts():
                    return self.client.execute_command("EVALSHA", script.sha1, *parts)
            try:
                return self.client.execute_command("EVAL", script.source, *parts)
            except exceptions.NoPermissionError:
                raise BrokerUnavailable(
                    f"the broker at {self.url} does not know script {name} of this release, and this user "
                    "may not load it: the learner loads it when it starts and after the broker restarts"
                ) from None

        with _our_errors(self.url):
            return self._retrying.call(send)

    def load_scripts(self) -> bool:
        """Makes every script known, for users who may not load them; False where this user may not either."""
        with _our_errors(self.url):
            return self._retrying.call(self._load_scripts)

    def _load_scripts(self) -> bool:
        try:
            for name in script_names():
                self.client.execute_command("SCRIPT LOAD", load_script(name).source)
        except exceptions.NoPermissionError:
            return False
        return True

    def blocking_read(
        self, stream_key: str, *, after_id: str, max_count: int, block_seconds: float
    ) -> list[Any]:
        """XREAD of one stream: [(id, {field: value})], empty when nothing came in `block_seconds`.

        A wait longer than `block_slice_seconds` returns early and empty; callers loop.
        """
        parts: list[Any] = ["XREAD", "COUNT", max_count]
        if block_seconds > 0:
            parts += ["BLOCK", max(1, int(min(block_seconds, self.block_slice_seconds) * 1000))]
        return _entries(self.command(*parts, "STREAMS", stream_key, after_id))

    def wait_for_entry(self, after: Mapping[str, str], *, block_seconds: float) -> bool:
        """Blocks until one of several streams has an entry after the id given for it; False when none came.

        Returns False early when the wait is longer than `block_slice_seconds`; callers loop.
        """
        block_ms = max(1, int(min(block_seconds, self.block_slice_seconds) * 1000))
        parts = ["XREAD", "COUNT", 1, "BLOCK", block_ms, "STREAMS", *after, *after.values()]
        return bool(self.command(*parts))

    def read_range(self, stream_key: str, *, first_id: str, max_count: int, last_id: str = "+") -> list[Any]:
        """XRANGE of one stream: [(id, {field: value})]."""
        reply = self.command("XRANGE", stream_key, first_id, last_id, "COUNT", max_count)
        return _pairs(reply)

    def newest(self, stream_key: str, *, max_count: int) -> list[Any]:
        """The newest entries of one stream, newest first: [(id, {field: value})]."""
        return _pairs(self.command("XREVRANGE", stream_key, "+", "-", "COUNT", max_count))

    def hash_items(self, hash_key: str) -> list[tuple[bytes, bytes]]:
        """Every field and value of one hash."""
        return list(self.command("HGETALL", hash_key).items())

    def close(self) -> None:
        """Closes every connection of the pool."""
        self.client.close()


@contextmanager
def _our_errors(url: str) -> Iterator[None]:
    """Turns redis-py's errors into ours; one sentence each, the password never in it."""
    try:
        yield
    except exceptions.OutOfMemoryError as error:
        raise BrokerFull(f"the broker at {url} is out of memory and refuses to append") from error
    except _REFUSALS as error:
        raise BrokerRefused(
            f"the broker at {url} rejected our login or a command ({error}): check user, password and ACL, "
            "which `asympo log acl` prints for each role of this release"
        ) from error
    except _RETRIED as error:
        raise BrokerUnavailable(
            f"the broker at {url} does not answer ({type(error).__name__}: {error})"
        ) from error
    except exceptions.ResponseError as error:
        # A script meets a slot that is on its way to another master.
        if str(error).startswith(_TRANSIENT_CODES) or "access a non local key" in str(error):
            raise BrokerUnavailable(f"the broker at {url} cannot answer now ({error})") from error
        if "OOM " in str(error):
            raise BrokerFull(f"the broker at {url} is out of memory and refuses to append") from error
        raise BrokerRefused(f"the broker at {url} refused a command ({error})") from error
    # What redis-py raises for a cluster whose map it cannot read is no RedisError of its own.
    except (exceptions.RedisError, exceptions.RedisClusterException) as error:
        raise BrokerUnavailable(f"the broker at {url} failed ({type(error).__name__}: {error})") from error


def _entries(reply: Any) -> list[Any]:
    """The entries of a one-stream XREAD reply."""
    return _pairs(reply[0][1]) if reply else []


def _pairs(reply: Any) -> list[Any]:
    """Stream entries with text ids and text field names; values stay bytes."""
    entries = []
    for entry_id, fields in reply or []:
        pairs = fields.items() if isinstance(fields, dict) else zip(fields[::2], fields[1::2], strict=True)
        named = {name.decode(errors="replace"): value for name, value in pairs}
        entries.append((entry_id.decode(), named))
    return entries
