import pytest
from asympo.common.errors import BrokerRefused
from asympo.common.rollout_log.broker.server_info import describe

GOOD = {"redis_version": "7.0.15", "aof_enabled": 1, "maxmemory_policy": "noeviction", "used_memory": 5}
ALWAYS = {"appendfsync": "always"}


@pytest.mark.parametrize(
    ("info", "named"),
    [
        ({"redis_version": "6.2.14"}, "Redis 6.2.14"),
        ({"redis_version": "7.2.4", "server_name": "valkey", "valkey_version": "7.2.11"}, "Valkey 7.2.11"),
        ({}, "Redis 0"),
    ],
)
def test_broker_info_refuses_a_server_that_is_too_old(info: dict[str, str], named: str) -> None:
    with pytest.raises(BrokerRefused, match=f"{named}: use Redis 7 or newer, or Valkey 8 or newer"):
        describe({**GOOD, **info} if info else {}, ALWAYS, url="redis://here")


def test_broker_info_has_no_warning_for_a_safe_server() -> None:
    info = describe(GOOD, ALWAYS, url="redis://here")
    assert (info.server, info.version, info.aof, info.warnings) == ("redis", "7.0.15", True, ())


@pytest.mark.parametrize(
    ("info", "config", "said"),
    [
        ({"aof_enabled": 0}, ALWAYS, "no append-only file"),
        ({}, {"appendfsync": "everysec"}, "last second of acknowledged groups"),
        ({}, {"appendfsync": "no"}, "whatever the kernel"),
        ({"maxmemory_policy": "allkeys-lru"}, ALWAYS, "deletes unread groups"),
        ({"role": "slave", "master_host": "a", "master_port": 1}, ALWAYS, "is a replica of a:1"),
    ],
)
def test_broker_info_warns_what_may_be_lost(
    info: dict[str, object], config: dict[str, str], said: str
) -> None:
    (warning,) = describe({**GOOD, **info}, config, url="redis://here").warnings
    assert said in warning


def test_broker_info_says_nothing_about_fsync_it_cannot_see() -> None:
    info = describe(GOOD, {}, url="redis://here")
    assert (info.appendfsync, info.warnings, info.is_durable) == ("unknown", (), None)


@pytest.mark.parametrize(
    ("info", "config", "is_durable"),
    [
        ({}, ALWAYS, True),
        ({}, {"appendfsync": "everysec"}, False),
        ({"aof_enabled": 0}, ALWAYS, False),
        ({"aof_enabled": 0}, {}, False),
    ],
)
def test_broker_info_says_whether_what_is_acknowledged_is_on_disk(
    info: dict[str, object], config: dict[str, str], is_durable: bool
) -> None:
    assert describe({**GOOD, **info}, config, url="redis://here").is_durable is is_durable
