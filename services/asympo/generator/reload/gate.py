"""Holds finished groups between a reload and its verdict."""

import asyncio


class VerdictGate:
    """The gate that every finished group passes before the log; shut until the loaded weights are proven.

    Belongs to one event loop.
    """

    def __init__(self) -> None:
        self._verdict: asyncio.Future[bool] | None = None
        self.num_held = 0
        """Groups that wait at the door."""
        self._num_rejected = 0

    @property
    def is_shut(self) -> bool:
        return self._verdict is not None

    def shut(self) -> None:
        """From now on groups wait. Idempotent."""
        if self._verdict is None:
            self._verdict = asyncio.get_running_loop().create_future()

    def open(self) -> None:
        """The weights are accepted: let the waiting groups go to the log. Idempotent."""
        if self._verdict is not None:
            self._verdict.set_result(True)
            self._verdict = None

    def reject(self) -> None:
        """The weights failed: the waiting groups go back as prompts; the door stays shut for the next."""
        self._num_rejected += 1
        if self._verdict is not None:
            self._verdict.set_result(False)
        self._verdict = asyncio.get_running_loop().create_future()

    async def passes(self, opened: int | None = None) -> bool:
        """Wait until the door is open; False when the group was held for weights that failed.

        Also where weights have failed since opened() gave `opened`: what nobody stops then may hold their
        tokens.
        """
        if opened not in (None, self._num_rejected):
            return False
        if self._verdict is None:
            return True
        self.num_held += 1
        try:
            while self._verdict is not None:
                # shield: one cancelled group must not cancel the verdict of the others.
                if not await asyncio.shield(self._verdict):
                    return False
            return True
        finally:
            self.num_held -= 1

    async def opened(self) -> int:
        """Wait until the loaded weights are proven again; what passes() asks for of a request begun now."""
        while self._verdict is not None:
            await asyncio.shield(self._verdict)
        return self._num_rejected
