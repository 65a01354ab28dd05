"""Whether a bucket can do what checkpoints need: tried with requests, not asked."""

import secrets
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

from asympo.common.checkpoints.bucket import Bucket, StoreError
from asympo.common.errors import BadSetting

P = ParamSpec("P")
T = TypeVar("T")

_ROOM = ".trial/"
"""Below the prefix; no run's name begins with a dot."""
_CONTENT = b"written and deleted when a service starts"


def try_reading(bucket: Bucket) -> str:
    """One sentence when objects can be listed. Raises as `try_writing`."""
    _ask(bucket.find, _ROOM)
    return f"{bucket} can be listed"


def try_writing(bucket: Bucket) -> Iterator[str]:
    """One sentence for each thing that works.

    Raises BadSetting when the store refuses or ignores what is needed, and StoreError, after which
    trying again may help, when it does not answer.
    """
    yield try_reading(bucket)
    key = f"{_ROOM}{secrets.token_hex(16)}"
    _ask(bucket.create, key, _CONTENT)
    try:
        if _ask(bucket.create, key, _CONTENT):
            raise BadSetting(
                f"{bucket} overwrote an object that it was told to write only if absent (If-None-Match: *):"
                " checkpoints need a store with conditional writes"
            )
        yield "it writes objects, and never over another when told so"
        if _ask(bucket.read, key, max_bytes=len(_CONTENT)) != _CONTENT:
            raise BadSetting(f"{bucket} returned bytes that differ from those it was given")
        if key not in {found.key for found in _ask(bucket.find, _ROOM)}:
            raise BadSetting(
                f"{bucket} did not list what it had just stored: checkpoints need a store whose listings are"
                " up to date"
            )
        yield "what was written is listed and read at once"
    finally:
        _ask(bucket.delete, [key])
    yield "objects can be deleted"
    try:
        bucket.abort_uploads(_ROOM, is_dead=lambda _: False)
    except StoreError as error:
        yield f"unfinished uploads cannot be listed, let a rule of the bucket expire them: {error.strerror}"
    else:
        yield "unfinished uploads can be listed"


def _ask(action: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    try:
        return action(*args, **kwargs)
    except StoreError as error:
        if error.is_refusal:
            raise BadSetting(
                f"{error.strerror}: check object_store.url, endpoint and region, what the credentials may do,"
                " and that the store has conditional writes"
            ) from error
        raise
