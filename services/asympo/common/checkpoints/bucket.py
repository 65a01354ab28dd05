"""One bucket of an S3-compatible store, and the few requests that checkpoints need."""

import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from asympo.common.object_store import ObjectStoreOptions
from asympo.common.proxies import is_own

log = logging.getLogger(__name__)

_PART_BYTES = 16 << 20
_CHUNK_BYTES = 1 << 20
_NUM_THREADS = 8
_MAX_ATTEMPTS = 5
_CONNECT_SECONDS = 10
_READ_SECONDS = 60
_REFUSALS = frozenset(
    {"AccessDenied", "AllAccessDisabled", "InvalidAccessKeyId", "SignatureDoesNotMatch", "NoSuchBucket"}
    | {"ExpiredToken", "InvalidToken", "401", "403"}
    | {
        "AuthorizationHeaderMalformed",
        "PermanentRedirect",
        "InvalidBucketName",
        "NotImplemented",
        "301",
        "501",
    }
)
_PRECONDITION = frozenset({"PreconditionFailed", "412"})
_CONFLICT = frozenset({"ConditionalRequestConflict", "OperationAborted", "409"})
_MISSING = frozenset({"NoSuchKey", "NoSuchUpload", "404"})
_NUM_CONFLICTS = 5


class StoreError(OSError):
    """The store did not do what it was asked; `strerror` is a sentence, `is_refusal` if no retry can help.

    An OSError, so that whatever copes with a disk that fails copes with a store that fails.
    """

    def __init__(self, sentence: str, *, is_refusal: bool = False, number: int = errno.EIO) -> None:
        super().__init__(number, sentence)
        self.is_refusal = is_refusal


class NoSuchObject(StoreError):
    """There is no object under that key."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence, number=errno.ENOENT)


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectInfo:
    """One object of a listing."""

    key: str
    """Without the bucket's prefix."""
    size: int
    """Bytes."""


class Bucket:
    """Objects below one prefix of one bucket; keys are relative to it. Safe in any thread.

    Requests are tried again within; what still fails raises StoreError.
    """

    def __init__(self, options: ObjectStoreOptions) -> None:
        self._options = options
        self._name = options.bucket
        self._prefix = options.prefix
        self._transfer = TransferConfig(
            multipart_threshold=2 * _PART_BYTES, multipart_chunksize=_PART_BYTES, max_concurrency=_NUM_THREADS
        )
        self._making = threading.Lock()
        self._made: Any = None

    def __str__(self) -> str:
        return str(self._options.url)

    @property
    def _client(self) -> Any:
        """Made at the first request: reading the library's data files takes a while."""
        with self._making:
            if self._made is None:
                options = self._options
                config = Config(
                    retries={"mode": "standard", "max_attempts": _MAX_ATTEMPTS},
                    # None: as the environment says.
                    proxies={} if options.endpoint and is_own(options.endpoint) else None,
                    connect_timeout=_CONNECT_SECONDS,
                    read_timeout=_READ_SECONDS,
                    max_pool_connections=2 * _NUM_THREADS,
                    # Not all stores take the newer checksums, and manifests hold digests of everything.
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                    s3={"addressing_style": "path" if options.endpoint else "auto"},
                )
                any_region = _ANY_REGION if options.endpoint else None
                with self._asking("set up"):
                    session = boto3.session.Session()
                    self._made = session.client(
                        "s3",
                        endpoint_url=options.endpoint,
                        region_name=options.region or session.region_name or any_region,
                        verify=str(options.ca_file) if options.ca_file else None,
                        config=config,
                    )
            return self._made

    def find(self, prefix: str) -> list[ObjectInfo]:
        """Every object whose key starts with `prefix`, by key."""
        found: list[ObjectInfo] = []
        with self._asking("list", prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._name, Prefix=self._prefix + prefix
            )
            for page in pages:
                found.extend(
                    ObjectInfo(key=entry["Key"].removeprefix(self._prefix), size=int(entry["Size"]))
                    for entry in page.get("Contents", ())
                )
        return found

    def read(self, key: str, *, max_bytes: int) -> bytes:
        """The content of a small object; NoSuchObject without one."""
        with self._asking("read", key):
            answer = self._client.get_object(Bucket=self._name, Key=self._prefix + key)
            with answer["Body"] as body:
                content: bytes = body.read(max_bytes + 1)
        if len(content) > max_bytes:
            raise StoreError(f"{self}/{key} is larger than {max_bytes} bytes")
        return content

    def create(self, key: str, content: bytes) -> bool:
        """Write a small object unless the key is taken, in one indivisible request; whether it was free.

        When an answer was lost, the retry finds the key taken: compare what is there.
        """
        for _ in range(_NUM_CONFLICTS):
            try:
                with self._asking("create", key):
                    self._client.put_object(
                        Bucket=self._name, Key=self._prefix + key, Body=content, IfNoneMatch="*"
                    )
                    return True
            except _Taken:
                return False
            except _Conflict:
                # Somebody writes the same key at this very moment: ask again who was first.
                continue
        raise StoreError(f"{self}/{key} is being overwritten again and again by somebody else")

    def upload(self, files: Mapping[str, Path]) -> None:
        """Copy files under their keys; large ones in parts, a part that fails is retried alone."""
        self._each(files.items(), self._upload)

    def download(self, keys: Mapping[str, Path]) -> None:
        """Copy objects into new files; a connection that breaks costs no byte that has come."""
        self._each(keys.items(), self._download)

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; those that are gone already count as deleted."""
        # One request each: bulk deletion demands checksums that stores disagree about.
        self._each(((key, None) for key in keys), self._delete)

    def abort_uploads(self, prefix: str, *, is_dead: Callable[[str], bool]) -> list[str]:
        """Give up uploads in parts that nobody will finish, by key; returns the keys.

        Their parts are in no listing of objects and are paid for. Stores that keep no such list have none.
        """
        aborted = []
        with self._asking("list unfinished uploads below", prefix):
            pages = self._client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self._name, Prefix=self._prefix + prefix
            )
            found = [
                (str(entry["Key"]), str(entry["UploadId"]))
                for page in pages
                for entry in page.get("Uploads") or ()
            ]
        for key, upload_id in found:
            if not is_dead(key.removeprefix(self._prefix)):
                continue
            try:
                with self._asking("abort an upload of", key):
                    self._client.abort_multipart_upload(Bucket=self._name, Key=key, UploadId=upload_id)
            except NoSuchObject:
                continue
            aborted.append(key.removeprefix(self._prefix))
        return aborted

    def _upload(self, key: str, path: Path) -> None:
        with self._asking("upload", key):
            self._client.upload_file(str(path), self._name, self._prefix + key, Config=self._transfer)

    def _download(self, key: str, path: Path) -> None:
        """In parts at a time, each of which goes on where it broke off."""
        with self._asking("download", key):
            size = int(self._client.head_object(Bucket=self._name, Key=self._prefix + key)["ContentLength"])
        with open(path, "xb") as file, ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="part") as pool:
            starts = range(0, size, _PART_BYTES)
            parts = [
                pool.submit(self._fetch, key, file.fileno(), start, min(start + _PART_BYTES, size))
                for start in starts
            ]
            for part in parts:
                part.result()

    def _fetch(self, key: str, descriptor: int, start: int, end: int) -> None:
        """Some bytes of an object into a file. Gives up after so many failures in a row that brought none."""
        at, num_failures = start, 0
        while at < end:
            reached = at
            try:
                with self._asking("download", key):
                    answer = self._client.get_object(
                        Bucket=self._name, Key=self._prefix + key, Range=f"bytes={at}-{end - 1}"
                    )
                    with answer["Body"] as body:
                        while content := body.read(_CHUNK_BYTES):
                            os.pwrite(descriptor, content, at)
                            at += len(content)
            except StoreError as error:
                num_failures = 1 if at > reached else num_failures + 1
                if error.is_refusal or isinstance(error, NoSuchObject) or num_failures == _MAX_ATTEMPTS:
                    raise
                log.info("The download of %s goes on at byte %d: %s", key, at, error.strerror)
                time.sleep(2.0 ** (num_failures - 1))

    def _delete(self, key: str, _: None) -> None:
        with self._asking("delete", key):
            self._client.delete_object(Bucket=self._name, Key=self._prefix + key)

    def _each(self, items: Iterable[tuple[str, Any]], action: Callable[[str, Any], None]) -> None:
        listed = list(items)
        if not listed:
            return
        with ThreadPoolExecutor(min(_NUM_THREADS, len(listed)), thread_name_prefix="bucket") as pool:
            for future in [pool.submit(action, key, value) for key, value in listed]:
                future.result()

    @contextmanager
    def _asking(self, what: str, key: str = "") -> Iterator[None]:
        """Turns the library's errors into ours, with one sentence."""
        where = f"{self}/{key.removeprefix(self._prefix)}" if key else str(self)
        try:
            yield
        except ClientError as error:
            details = error.response.get("Error", {})
            code = str(details.get("Code", ""))
            reason = details.get("Message", "no reason given")
            text = f"{self._place} refused to {what} {where} ({code}: {reason})"
            if code in _PRECONDITION:
                raise _Taken(text) from error
            if code in _CONFLICT:
                raise _Conflict(text) from error
            if code in _MISSING:
                raise NoSuchObject(text) from error
            raise StoreError(text, is_refusal=code in _REFUSALS) from error
        except (BotoCoreError, Boto3Error) as error:
            cause = error.__cause__ or error.__context__
            if isinstance(cause, ClientError):
                code = str(cause.response.get("Error", {}).get("Code", ""))
                raise StoreError(
                    f"{self._place} refused to {what} {where} ({code})", is_refusal=code in _REFUSALS
                ) from error
            is_refusal = type(error).__name__ in _CALLERS_FAULTS
            raise StoreError(
                f"{self._place} could not be asked to {what} {where} ({error})", is_refusal=is_refusal
            ) from error

    @property
    def _place(self) -> str:
        return self._options.endpoint or "S3"


_ANY_REGION = "us-east-1"
"""Signatures name a region; stores with an address of their own mostly take this one."""
_CALLERS_FAULTS = frozenset(
    {
        "NoCredentialsError",
        "PartialCredentialsError",
        "NoRegionError",
        "ProfileNotFound",
        "InvalidRegionError",
        "ParamValidationError",
    }
)


class _Taken(StoreError):
    """The key exists."""


class _Conflict(StoreError):
    """Another request for the same key is under way."""
