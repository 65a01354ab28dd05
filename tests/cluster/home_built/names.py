"""Name service of the cluster: answers for Services, asked anew of the API server at every question."""

import socket
import struct
import threading
from collections.abc import Callable, Iterator

_A, _IN, _NAME_ERROR, _FAILURE = 1, 1, 3, 2
_SUFFIX = "svc.cluster.local"
_TTL_SECONDS = 1


class NameServer:
    """UDP on port 53 of one address."""

    def __init__(self, address: str, *, addresses_of: Callable[[str, str], list[str] | None]) -> None:
        """`addresses_of(service, namespace)` is None for a Service that does not exist."""
        self._addresses_of = addresses_of
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((address, 53))
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            question, asker = self._socket.recvfrom(512)
            threading.Thread(target=self._reply, args=(question, asker), daemon=True).start()

    def _reply(self, question: bytes, asker: tuple[str, int]) -> None:
        self._socket.sendto(answer(question, self._addresses_of), asker)


def answer(question: bytes, addresses_of: Callable[[str, str], list[str] | None]) -> bytes:
    """The datagram that answers a question of one name."""
    name, end = _name(question)
    kind, _ = struct.unpack_from(">HH", question, end)
    labels = name.lower().split(".")
    found, code = None, _NAME_ERROR
    if ".".join(labels[2:]) == _SUFFIX:
        try:
            found = addresses_of(labels[0], labels[1])
        except OSError:
            code = _FAILURE
    if found is not None:
        code = 0
    records = [
        b"\xc0\x0c" + struct.pack(">HHIH", _A, _IN, _TTL_SECONDS, 4) + socket.inet_aton(each)
        for each in found or []
        if kind == _A
    ]
    # An answer, with authority, recursion as it was asked for.
    flags = 0x8400 | (struct.unpack_from(">H", question, 2)[0] & 0x0100) | code
    head = question[:2] + struct.pack(">HHHHH", flags, 1, len(records), 0, 0)
    return head + question[12 : end + 4] + b"".join(records)


def _name(question: bytes) -> tuple[str, int]:
    """The name that is asked for, and where it ends."""

    at = 12

    def labels() -> Iterator[bytes]:
        nonlocal at
        while length := question[at]:
            yield question[at + 1 : at + 1 + length]
            at += 1 + length
        at += 1

    name = b".".join(labels())
    return name.decode(errors="replace"), at
