"""The asynchronous client: one set of verbs over three ways to the log."""

from collections.abc import AsyncIterable, Iterable
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from asympo.client.groups import Answers, text_group
from asympo.client.grpc_way import GrpcWay
from asympo.client.http_way import HttpWay
from asympo.client.log_way import LogWay
from asympo.client.ways import Outcome, Way
from asympo.common.errors import BadSetting
from asympo.common.records import Prompt, RolloutGroup


class AsyncClient:
    """Submits groups. Use it as `async with AsyncClient(address) as client`."""

    def __init__(
        self,
        address: str,
        *,
        token: str = "",
        run: str | None = None,
        producer: str = "local",
        max_wait_seconds: float = 600.0,
    ) -> None:
        """`run` and `producer`: only for `redis://`, where no gateway knows them.

        `max_wait_seconds`: how long a full log or a gateway that is away is asked again, while no group is
        taken.
        """
        self._way = _open(address, token=token, run=run, producer=producer)
        self._max_wait_seconds = max_wait_seconds

    async def submit(
        self,
        prompt: str | Prompt | RolloutGroup,
        responses: Answers = (),
        *,
        group_id: str | int | None = None,
    ) -> Outcome:
        """Appends one group; returns when it is in the log, was there before, or is refused for good.

        Raises ProducerRefused when the record is wrong, NoProgress when no slot came in time.
        """
        group = (
            prompt if isinstance(prompt, RolloutGroup) else text_group(prompt, responses, group_id=group_id)
        )
        return await self._way.submit(group, max_wait_seconds=self._max_wait_seconds)

    async def submit_many(
        self, groups: Iterable[RolloutGroup] | AsyncIterable[RolloutGroup]
    ) -> list[Outcome]:
        """Appends groups as fast as slots come; the outcomes of those that were not taken now.

        A plain iterable is read on the event loop: give an asynchronous one if it takes long for a group. If
        it raises, what it gave is sent first, and the error's notes name the groups that were not taken.
        """
        return await self._way.submit_many(groups, max_wait_seconds=self._max_wait_seconds)

    async def close(self) -> None:
        """Ends the connection."""
        await self._way.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _open(address: str, *, token: str, run: str | None, producer: str) -> Way:
    scheme = urlsplit(address).scheme
    if scheme in ("http", "https"):
        return HttpWay(address, token=token)
    if scheme in ("grpc", "grpcs"):
        return GrpcWay(address, token=token)
    if scheme in ("redis", "rediss", "unix", "redis+sentinel"):
        if run is None:
            raise BadSetting(f"the address is that of a broker ({scheme}://…): give run as well")
        return LogWay(address, run=run, producer=producer)
    raise BadSetting(
        f"the address {address!r} is neither that of a gateway nor that of a broker: give http://…, "
        "grpc://… or redis://…"
    )
