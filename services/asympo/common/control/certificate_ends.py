"""Until when the certificates of a service are valid."""

import base64
import datetime
import math
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from asympo.common.control.settings import TlsFiles
from asympo.common.object_store import ObjectStoreOptions

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----(.+?)-----END CERTIFICATE-----", re.DOTALL)
_UTC_TIME, _VERSION = 0x17, 0xA0


def certificate_ends(
    *, redis_url: str, grpc_tls: TlsFiles | None = None, object_store: ObjectStoreOptions | None = None
) -> dict[str, Callable[[], float]]:
    """Of the certificate files in a service's settings, by what they are for: asks when one ends."""
    query = dict(parse_qsl(urlsplit(redis_url).query))
    files = {
        "broker-client": query.get("ssl_certfile"),
        "broker-ca": query.get("ssl_ca_certs"),
        "control": grpc_tls and grpc_tls.certificate,
        "control-client-ca": grpc_tls and grpc_tls.client_ca,
        "object-store-ca": object_store and object_store.ca_file,
    }
    return {use: partial(end_of, use, Path(path)) for use, path in files.items() if path}


def end_of(use: str, path: Path) -> float:
    """Seconds since 1970; not a number while it cannot be read.

    Each certificate of a chain must be valid; of several authorities one is enough.
    """
    try:
        ends = [_end(base64.b64decode(block)) for block in _PEM.findall(path.read_bytes())]
        return max(ends) if use.endswith("-ca") else min(ends)
    except (OSError, ValueError, IndexError, StopIteration):
        return math.nan


def _end(certificate: bytes) -> float:
    """The field notAfter of a certificate in DER."""
    fields = list(_parts(next(_parts(next(_parts(certificate))[1]))[1]))
    # Of the first version it has no field that says so.
    validity = fields[4 if fields[0][0] == _VERSION else 3][1]
    kind, text = list(_parts(validity))[1]
    layout = "%y%m%d%H%M%SZ" if kind == _UTC_TIME else "%Y%m%d%H%M%SZ"
    moment = datetime.datetime.strptime(text.decode("ascii"), layout)
    return moment.replace(tzinfo=datetime.UTC).timestamp()


def _parts(encoded: bytes) -> Iterator[tuple[int, bytes]]:
    """Tags and contents that follow one another."""
    at = 0
    while at < len(encoded):
        tag, length, at = encoded[at], encoded[at + 1], at + 2
        if length & 0x80:
            num = length & 0x7F
            length, at = int.from_bytes(encoded[at : at + num]), at + num
        yield tag, encoded[at : at + length]
        at += length
