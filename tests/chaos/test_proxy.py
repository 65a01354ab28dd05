"""The proxy knows the product's messages and can stop time between two of them. Real broker, real client."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import hiredis
import pytest
from asympo.chaos.faults.base import is_appended
from asympo.chaos.proxy import ClientLink, Handling, Moment
from asympo.chaos.resp import FrameSplitter, encode_command, parse_reply, parse_request
from asympo.common.errors import BrokerUnavailable
from asympo.common.rollout_log import AppendOutcome, Broker, Lease, RunConfig, RunLog, RunState
from asympo.common.rollout_log.lua import load_script, script_names

FRAMES = [
    b"+OK\r\n",
    b"-NOSCRIPT no\r\n",
    b":12\r\n",
    b"$-1\r\n",
    b"$5\r\na\r\nbc\r\n",
    b"*2\r\n:1\r\n*1\r\n$0\r\n\r\n",
]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_splitter_finds_the_same_messages_however_they_are_cut(size: int) -> None:
    splitter, stream = FrameSplitter(), b"".join(FRAMES)
    found = [
        frame
        for start in range(0, len(stream), size)
        for frame in splitter.feed(stream[start : start + size])
    ]
    assert found == FRAMES
    okay, error, *others = [parse_reply(frame) for frame in found]
    assert okay == b"OK"
    assert isinstance(error, hiredis.ReplyError)
    assert str(error) == "NOSCRIPT no"
    assert others == [
        12,
        None,
        b"a\r\nbc",
        [1, [b""]],
    ]


@pytest.mark.parametrize("name", script_names())
def test_request_names_the_script_however_it_is_called(name: str) -> None:
    script = load_script(name)
    for command, known_as in (("EVALSHA", script.sha1), ("EVAL", script.source), ("FCALL", name)):
        request = parse_request(encode_command(command, known_as, 2, "key1", "key2", "first", 7))
        assert (request.script, request.arguments) == (name, (b"first", b"7"))


def test_request_without_a_script_is_no_script() -> None:
    assert parse_request(encode_command("HGET", "key", "field")).script is None
    assert parse_request(encode_command("EVALSHA", "0" * 40, 0)).script is None


class Door:
    """A link in front of the test broker and a run behind it, used from a thread like a client."""

    def __init__(self, link: ClientLink, url: str, run: str) -> None:
        self.link = link
        direct = Broker.connect(url)
        self.behind = RunLog(direct, run)
        self.behind.state.create_or_join(
            RunConfig(
                run=run, group_size=2, groups_per_step=2, max_groups_per_step=2, num_prompts=8, model="m"
            )
        )
        fence = self.behind.fence.take("learner")
        self.behind.policies.announce(fence, step=0, digest="0" * 64)
        self.behind.state.set(RunState.RUNNING, fence=fence)

    async def client(self) -> RunLog:
        broker = await asyncio.to_thread(
            Broker.connect, f"{self.link.url}?socket_timeout=0.5", backoff_base_seconds=0.01, max_retries=2
        )
        return RunLog(broker, self.behind.run)


def through_door(broker_url: str, run_name: str, use: Callable[[Door], Any]) -> None:
    """Runs an async test body with an open door."""

    async def run() -> None:
        link = ClientLink(name="client", broker_port=urlsplit(broker_url).port or 6379)
        await link.open()
        try:
            door = await asyncio.to_thread(Door, link, broker_url, run_name)
            async with asyncio.timeout(20):
                await use(door)
        finally:
            await link.close()

    asyncio.run(run())


async def leased(client: RunLog) -> Lease:
    lease = await asyncio.to_thread(client.leases.acquire, holder="client", policy_step=0)
    assert isinstance(lease, Lease)
    return lease


def test_link_cut_between_append_and_reply_leaves_one_group(broker_url: str, run_name: str) -> None:
    async def use(door: Door) -> None:
        client = await door.client()
        lease = await leased(client)
        trap = door.link.trap(script="append", moment=Moment.AFTER, is_wanted=is_appended)
        appending = asyncio.ensure_future(
            asyncio.to_thread(client.leases.append, lease, b"x", producer="client")
        )
        catch = await trap.caught(5.0)
        assert catch.reply[:2] == [b"APPENDED", 1]
        assert not appending.done()
        assert door.behind.stats.read().appended == 1
        assert door.link.reset() >= 1
        trap.release(Handling.DISCARD)
        result = await appending
        assert (result.outcome, result.sequence) == (AppendOutcome.DUPLICATE, 1)
        assert door.behind.stats.read().appended == 1

    through_door(broker_url, run_name, use)


def test_append_held_before_the_broker_is_not_done(broker_url: str, run_name: str) -> None:
    async def use(door: Door) -> None:
        client = await door.client()
        lease = await leased(client)
        trap = door.link.trap(script="append", moment=Moment.BEFORE)
        appending = asyncio.ensure_future(
            asyncio.to_thread(client.leases.append, lease, b"x", producer="client")
        )
        await trap.caught(5.0)
        assert door.behind.stats.read().appended == 0
        trap.release(Handling.RELAY)
        assert (await appending).outcome is AppendOutcome.APPENDED

    through_door(broker_url, run_name, use)


def test_append_sent_again_is_answered_duplicate_and_the_client_hears_the_first(
    broker_url: str, run_name: str
) -> None:
    async def use(door: Door) -> None:
        client = await door.client()
        lease = await leased(client)
        trap = door.link.trap(script="append", moment=Moment.AFTER, is_wanted=is_appended)
        appending = asyncio.ensure_future(
            asyncio.to_thread(client.leases.append, lease, b"x", producer="client")
        )
        catch = await trap.caught(5.0)
        assert (await catch.connection.ask_again(catch.request))[:2] == [b"DUPLICATE", 1]
        trap.release(Handling.RELAY)
        assert (await appending).outcome is AppendOutcome.APPENDED

    through_door(broker_url, run_name, use)


def test_deaf_link_swallows_until_the_client_gives_up(broker_url: str, run_name: str) -> None:
    async def use(door: Door) -> None:
        client = await door.client()
        door.link.is_deaf = True
        with pytest.raises(BrokerUnavailable):
            await asyncio.to_thread(client.state.get)
        assert door.link.num_swallowed >= 1
        door.link.is_deaf = False
        assert await asyncio.to_thread(client.state.get) is RunState.RUNNING

    through_door(broker_url, run_name, use)


def test_slow_link_delays_every_request(broker_url: str, run_name: str) -> None:
    async def use(door: Door) -> None:
        client = await door.client()
        door.link.delay_seconds = 0.1
        await asyncio.to_thread(client.state.get)
        assert door.link.longest_delay_seconds >= 0.1

    through_door(broker_url, run_name, use)


def test_shut_door_looks_like_a_broker_that_is_down(broker_url: str, run_name: str) -> None:
    async def use(door: Door) -> None:
        client = await door.client()
        door.link.is_shut = True
        door.link.reset()
        with pytest.raises(BrokerUnavailable):
            await asyncio.to_thread(client.state.get)

    through_door(broker_url, run_name, use)


def test_trap_that_waited_in_vain_lets_the_next_message_pass(broker_url: str, run_name: str) -> None:
    async def use(door: Door) -> None:
        client = await door.client()
        trap = door.link.trap(script="append", moment=Moment.AFTER)
        with pytest.raises(TimeoutError):
            await trap.caught(0.05)
        lease = await leased(client)
        result = await asyncio.to_thread(client.leases.append, lease, b"x", producer="client")
        assert result.outcome is AppendOutcome.APPENDED

    through_door(broker_url, run_name, use)
    assert threading.active_count() < 50
