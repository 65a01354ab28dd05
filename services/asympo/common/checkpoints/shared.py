"""Steps of one kind (policies or training states) of one run in a bucket.

Under `<run>/<kind>/`:

    step-00000042-f0007/manifest.json          written last, only if absent: from then on the step is visible
    step-00000042-f0007/<digest>/<file>        what it lists; <digest> begins the manifest's own
    fence-00000007.json                        written by a learner that takes over, only if absent

Nothing is written twice: another attempt at a step has another manifest, and so other keys. A learner that
lost the run can still send requests, and no store takes two keys in one of them. So whoever takes over writes
down which steps of older fences are visible. Readers obey the highest such record: what an older fence writes
after it does not exist.
"""

import logging
import re
import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from asympo.common import errors
from asympo.common.checkpoints.bucket import Bucket, NoSuchObject, StoreError
from asympo.common.checkpoints.manifest import FileEntry, open_sealed_json, sealed_json
from asympo.common.checkpoints.names import MANIFEST_NAME, StepName, parse_name
from asympo.common.names import check_run_name
from asympo.common.versions import Format

logger = logging.getLogger(__name__)

MAX_MANIFEST_BYTES = 256 << 20
_CLAIM_FORMAT = Format(name="schema_version", newest=1, oldest=1)
"""Of the record of who took over."""
_CLAIM = re.compile(r"fence-(\d{8,})\.json")
_RETAINED = ".retained"
"""Suffix of the empty object beside a step that is kept for good."""
_DIGEST_CHARACTERS = 16
_MAX_MANIFESTS = 16
_NUM_LOOKS = 5
_FILES: TypeAdapter[tuple[FileEntry, ...]] = TypeAdapter(tuple[FileEntry, ...])


@dataclass(frozen=True, kw_only=True)
class _Listing:
    """What one look at the bucket shows."""

    steps: dict[StepName, dict[str, int]] = field(default_factory=dict)
    """Bytes of each object of each step, by its key below the step."""
    fences: set[int] = field(default_factory=set)
    """Fences that have taken over."""
    retained: set[str] = field(default_factory=set)
    """Names of steps that are kept for good."""


@dataclass(frozen=True, kw_only=True)
class SharedManifest:
    """A manifest as far as every kind of step has it."""

    content: bytes
    """All of it, as stored."""
    digest: str
    """Its own digest."""
    files: tuple[FileEntry, ...]
    """What belongs to the step."""


class SharedSteps:
    """Finds, shares and deletes steps. Every method raises StoreError (an OSError) when the store fails."""

    def __init__(self, bucket: Bucket, run: str, *, kind: str, allowed: re.Pattern[str]) -> None:
        self.bucket = bucket
        self._root = f"{check_run_name(run)}/{kind}/"
        self._allowed = allowed
        self._token = secrets.token_hex(8)
        self._lock = threading.Lock()
        self._being_written: set[StepName] = set()
        self._manifests: dict[StepName, SharedManifest] = {}

    def __str__(self) -> str:
        return f"{self.bucket}/{self._root}".rstrip("/")

    # --- readers ---------------------------------------------------------------------------------------

    def names(self) -> list[StepName]:
        """Visible steps that have all they list, sorted so that the last one wins."""
        listing, visible = self._look()
        return [name for name in visible if self._is_complete(name, listing)]

    def manifest(self, name: StepName) -> SharedManifest:
        """The manifest of a step; errors.CorruptCheckpoint when there is none or it is damaged."""
        with self._lock:
            known = self._manifests.get(name)
        if known is not None:
            return known
        what = f"{self}/{name}"
        try:
            content = self.bucket.read(self._key(name, MANIFEST_NAME), max_bytes=MAX_MANIFEST_BYTES)
        except NoSuchObject as error:
            raise errors.CorruptCheckpoint(f"{what} is gone, or was never complete.") from error
        found = self._open(content, what=what)
        with self._lock:
            # A manifest never changes, so only memory limits how long it is remembered.
            while len(self._manifests) >= _MAX_MANIFESTS:
                del self._manifests[next(iter(self._manifests))]
            self._manifests[name] = found
        return found

    def download(self, name: StepName, directory: Path) -> SharedManifest:
        """Copy the files of a step into an empty directory; returns its manifest, and checks no digest."""
        found = self.manifest(name)
        payload = _payload(found.digest)
        try:
            self.bucket.download(
                {self._key(name, payload, entry.name): directory / entry.name for entry in found.files}
            )
        except NoSuchObject as error:
            self._forget(name)
            raise errors.CorruptCheckpoint(f"{self}/{name} was deleted while it was read.") from error
        return found

    def highest_fence(self) -> int | None:
        """The highest fence in any name, unfinished ones included, or None where there is nothing."""
        listing = self._list()
        return max({*listing.fences, *(name.fence for name in listing.steps)}, default=None)

    def retained(self) -> set[str]:
        """Names of the steps that are kept for good."""
        return self._list().retained

    # --- the learner -----------------------------------------------------------------------------------

    def take_over(self, fence: int) -> None:
        """Write down what is visible now: nothing that an older fence adds later is. Raises errors.Fenced.

        Only for who holds the fence in the broker, before its first step is shared.
        """
        self._refuse_if_fenced(fence)
        _, visible = self._look()
        claim = {
            _CLAIM_FORMAT.name: _CLAIM_FORMAT.newest,
            "fence": fence,
            "token": self._token,
            "visible": [str(name) for name in visible],
        }
        key = self._claim_key(fence)
        if self.bucket.create(key, sealed_json(claim)):
            return
        found = self._read_claim(fence)
        if found.get("token") != self._token:
            raise errors.Fenced(f"{self} was taken over by another learner with the same fence {fence}.")

    def share(self, name: StepName, directory: Path, *, manifest: bytes) -> bytes:
        """Make the files that `manifest` lists visible as a step; returns the manifest that is visible.

        That is another one only where an earlier attempt at the same step, with the same files, got through
        and its answer did not. Raises errors.Fenced, and FileExistsError when the step has other files.
        """
        wanted = self._open(manifest, what=str(directory))
        payload = _payload(wanted.digest)
        with self._writing(name):
            self._refuse_if_fenced(name.fence)
            self.bucket.upload(
                {self._key(name, payload, entry.name): directory / entry.name for entry in wanted.files}
            )
            # Uploading takes its time: a learner that lost the run meanwhile should hear of it here.
            self._refuse_if_fenced(name.fence)
            if self.bucket.create(self._key(name, MANIFEST_NAME), manifest):
                return manifest
        self._forget(name)
        there = self.manifest(name)
        if there.files != wanted.files:
            raise FileExistsError(f"{self}/{name} exists already and is never overwritten")
        return there.content

    def retain(self, name: str) -> None:
        """Keep a step for good: whoever deletes asks `retained` first."""
        self.bucket.create(f"{self._root}{name}{_RETAINED}", b"")

    def delete(self, names: Sequence[StepName]) -> None:
        """Delete steps: each vanishes with its manifest, then its files go."""
        listing = self._list()
        for name in names:
            self._forget(name)
            self.bucket.delete([self._key(name, MANIFEST_NAME)])
            self._delete_all(name, listing)

    def sweep(self, *, fence: int) -> list[str]:
        """Delete what dead writers and failed attempts left behind; only for the holder of `fence`.

        Returns the names of the steps concerned. Spared are visible steps and what this object is writing.
        """
        listing, visible = self._look()
        swept = []
        for name in list(listing.steps):
            if name.fence > fence or self._is_being_written(name):
                continue
            if name in visible:
                rest = self._beside(name, listing)
                if rest:
                    self.bucket.delete([self._key(name, key) for key in rest])
                    swept.append(str(name))
            else:
                self.bucket.delete([self._key(name, MANIFEST_NAME)])
                self._delete_all(name, listing)
                swept.append(str(name))
        self.bucket.delete(
            [self._claim_key(old) for old in listing.fences if old < min(fence, max(listing.fences))]
        )
        try:
            swept.extend(self.bucket.abort_uploads(self._root, is_dead=lambda key: self._is_dead(key, fence)))
        except StoreError as error:
            # Some stores keep no such list or do not show it; a rule of the bucket may do the same.
            logger.warning("unfinished uploads below %s stay: %s", self, error.strerror)
        return swept

    # --- inside ----------------------------------------------------------------------------------------

    def _look(self) -> tuple[_Listing, list[StepName]]:
        """What is there, and what of it is visible, sorted."""
        for _ in range(_NUM_LOOKS):
            listing = self._list()
            present = sorted(
                (name for name, sizes in listing.steps.items() if MANIFEST_NAME in sizes),
                key=lambda name: name.rank,
            )
            highest = max(listing.fences, default=0)
            if not highest:
                return listing, present
            try:
                older = set(self._read_claim(highest)["visible"])
            except NoSuchObject:
                # Replaced by a higher one since.
                continue
            return listing, [name for name in present if name.fence >= highest or str(name) in older]
        raise StoreError(f"{self} keeps changing owners")

    def _list(self) -> _Listing:
        listing = _Listing()
        for found in self.bucket.find(self._root):
            head, _, rest = found.key.removeprefix(self._root).partition("/")
            name = parse_name(head.removesuffix(_RETAINED))
            if rest and name is not None:
                listing.steps.setdefault(name, {})[rest] = found.size
            elif name is not None and head.endswith(_RETAINED):
                listing.retained.add(str(name))
            elif (claim := _CLAIM.fullmatch(head)) is not None:
                listing.fences.add(int(claim[1]))
        return listing

    def _read_claim(self, fence: int) -> dict[str, Any]:
        key = self._claim_key(fence)
        content = self.bucket.read(key, max_bytes=MAX_MANIFEST_BYTES)
        try:
            claim = open_sealed_json(content, what=f"{self.bucket}/{key}")
        except errors.CorruptCheckpoint as error:
            # Without it nobody knows what is visible: as bad as a store that does not answer.
            raise StoreError(str(error)) from error
        _CLAIM_FORMAT.check(claim.get(_CLAIM_FORMAT.name), what=f"{self.bucket}/{key}")
        return claim

    def _open(self, content: bytes, *, what: str) -> SharedManifest:
        document = open_sealed_json(content, what=what)
        try:
            files = _FILES.validate_python(document.get("files"))
        except ValidationError as error:
            raise errors.CorruptCheckpoint(f"The manifest of {what} lists no files.") from error
        names = [entry.name for entry in files]
        if len(set(names)) != len(names) or not all(self._allowed.fullmatch(name) for name in names):
            raise errors.CorruptCheckpoint(
                f"The manifest of {what} lists a file twice, or one that a checkpoint may not have."
            )
        return SharedManifest(content=content, digest=str(document["digest"]), files=files)

    def _is_complete(self, name: StepName, listing: _Listing) -> bool:
        sizes = listing.steps[name]
        try:
            found = self.manifest(name)
        except errors.CorruptCheckpoint as error:
            logger.warning("checkpoint passed over: %s", error)
            return False
        payload = _payload(found.digest)
        for entry in found.files:
            if sizes.get(f"{payload}/{entry.name}") != entry.size:
                logger.warning("checkpoint passed over: %s/%s lacks %s", self, name, entry.name)
                return False
        return True

    def _refuse_if_fenced(self, fence: int) -> None:
        highest = self.highest_fence()
        if highest is not None and highest > fence:
            raise errors.Fenced(
                f"{self} belongs to fence {highest} and this learner has fence {fence}:"
                " another learner owns the run, or an earlier run of the same name left that there."
            )

    def _beside(self, name: StepName, listing: _Listing) -> list[str]:
        """Objects of a visible step that its manifest does not mean: of other attempts."""
        try:
            payload = _payload(self.manifest(name).digest)
        except errors.CorruptCheckpoint:
            return []
        return [
            key for key in listing.steps[name] if key != MANIFEST_NAME and not key.startswith(f"{payload}/")
        ]

    def _delete_all(self, name: StepName, listing: _Listing) -> None:
        keys = listing.steps.get(name, {})
        self.bucket.delete([self._key(name, key) for key in keys if key != MANIFEST_NAME])

    def _is_dead(self, key: str, fence: int) -> bool:
        name = parse_name(key.removeprefix(self._root).partition("/")[0])
        return name is not None and name.fence <= fence and not self._is_being_written(name)

    def _is_being_written(self, name: StepName) -> bool:
        with self._lock:
            return name in self._being_written

    def _forget(self, name: StepName) -> None:
        with self._lock:
            self._manifests.pop(name, None)

    @contextmanager
    def _writing(self, name: StepName) -> Iterator[None]:
        with self._lock:
            self._being_written.add(name)
        try:
            yield
        finally:
            with self._lock:
                self._being_written.discard(name)

    def _claim_key(self, fence: int) -> str:
        return f"{self._root}fence-{fence:08d}.json"

    def _key(self, name: StepName, *parts: str) -> str:
        return "/".join([f"{self._root}{name}", *parts])


def _payload(digest: str) -> str:
    return digest[:_DIGEST_CHARACTERS]
