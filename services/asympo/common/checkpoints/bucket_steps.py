"""Steps in a bucket, with copies in a directory of this machine.

Under `<run>/<kind>/`:

    step-00000042-f0007/manifest.json          written last, only if absent: from then on the step is visible
    step-00000042-f0007/<digest>/<file>        what it lists; <digest> begins the manifest's own
    step-00000042-f0007/<digest>/<file>.from-… or its difference to a step before (see `links`)
    fence-00000007.json                        written by a learner that takes over, only if absent

Nothing is written twice: another attempt at a step has another manifest, and so other keys. A learner that
lost the run can still send requests, and no store takes two keys in one of them. So whoever takes over writes
down which steps of older fences are visible. Readers obey the highest such record: what an older fence writes
after it does not exist.
"""

import errno
import logging
import re
import secrets
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic

from asympo.common.checkpoints import directory
from asympo.common.checkpoints.bucket import Bucket, NoSuchObject, StoreError
from asympo.common.checkpoints.cache import StepCopies
from asympo.common.checkpoints.links import Attempt, Link, attempt_of, is_needed, links_of
from asympo.common.checkpoints.manifest import open_sealed_json, sealed_json
from asympo.common.checkpoints.names import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    RETAINED,
    StepName,
    parse_name,
)
from asympo.common.checkpoints.steps import Checksums, Kind, M, ignore, newest_first, refuse_if_fenced
from asympo.common.checkpoints.transfer import Transfer
from asympo.common.errors import CorruptCheckpoint, Fenced, UnknownVersion
from asympo.common.names import check_run_name
from asympo.common.versions import Format

log = logging.getLogger(__name__)

_CLAIM_FORMAT = Format(name="schema_version", newest=1, oldest=1)
"""Of the record of who took over."""
_CLAIM = re.compile(r"fence-([0-9]{8,10})\.json")
_MAX_MANIFESTS = 48
_NUM_LOOKS = 5


@dataclass(frozen=True, kw_only=True)
class _Listing:
    """What one look at the bucket shows: a shelf, for `transfer`."""

    bucket: Bucket
    root: str
    """What keys begin with."""
    steps: dict[StepName, dict[str, int]] = field(default_factory=dict)
    """Bytes of each object of each step, by its key below the step."""
    fences: set[int] = field(default_factory=set)
    """Fences that have taken over."""
    retained: set[str] = field(default_factory=set)
    """Names of steps that are kept for good."""

    def stored(self) -> Iterator[str]:
        """Names of all files and differences."""
        return (key.rpartition("/")[2] for sizes in self.steps.values() for key in sizes)

    def files_of(self, attempt: Attempt) -> Mapping[str, int]:
        """Bytes of an attempt's objects, by name."""
        start = f"{attempt.payload}/"
        sizes = self.steps.get(attempt.name, {})
        return {key.removeprefix(start): size for key, size in sizes.items() if key.startswith(start)}

    def whole(self, attempt: Attempt) -> Path | None:
        """None is read where it is."""
        return None

    def fetch(self, wanted: Mapping[Link, Path]) -> None:
        """By downloading."""
        keys = {f"{self.root}{link.of.name}/{link.of.payload}/{link.stored}": link for link in wanted}
        self.bucket.download({key: wanted[link] for key, link in keys.items()})


class BucketSteps(Generic[M]):
    """The bucket decides what exists. Every method raises StoreError (an OSError) when the store fails."""

    holds_copies = True

    def __init__(
        self,
        root: Path,
        run: str,
        kind: Kind[M],
        *,
        bucket: Bucket,
        cached: int | None = None,
        keyframe_every: int,
    ) -> None:
        """`cached` limits the copies that `verify` leaves."""
        self.path = Path(root) / check_run_name(run) / kind.directory
        self._kind = kind
        self._bucket = bucket
        self._root = f"{run}/{kind.directory}/"
        self._copies: StepCopies[M] = StepCopies(self.path, kind, keep=cached, is_durable=True)
        self._transfer: Transfer[M] = Transfer(kind, keyframe_every=keyframe_every)
        self._token = secrets.token_hex(8)
        self._lock = threading.Lock()
        self._being_written: set[StepName] = set()
        self._manifests: dict[StepName, tuple[M, bytes]] = {}

    def __str__(self) -> str:
        return f"{self._bucket}/{self._root}".rstrip("/")

    # --- readers ---------------------------------------------------------------------------------------

    @property
    def sent_bytes(self) -> int:
        """Whole or not."""
        return self._transfer.sent_bytes

    def begin(self, name: StepName, *, is_whole: bool = False) -> Path:
        """Among the copies."""
        return directory.create_temporary(self.path, name)

    def place(self, name: StepName) -> Path:
        """Among the copies."""
        return self.path / str(name)

    def present(self) -> list[StepName]:
        """Those with a manifest that is not too late."""
        return self._look()[1]

    def newest_first(
        self, *, exclude: Collection[str] = (), on_corrupt: Callable[[StepName], None] = ignore
    ) -> Iterator[M]:
        """Steps whose objects all exist with the right sizes."""
        listing, visible = self._look()
        return newest_first(
            *(self._kind, visible, lambda name: self._complete(name, listing)),
            exclude=exclude,
            on_corrupt=on_corrupt,
        )

    def manifest(self, name: StepName) -> M:
        """As the bucket has it; its objects are not looked at."""
        return self._read(name)[0]

    def complete(self, name: StepName) -> M:
        """By what the bucket lists."""
        return self._complete(name, self._list())

    def bring(self, name: StepName) -> Path:
        """A copy, every digest checked, if there is none yet."""
        digest = self._read(name)[0].digest
        return self._copies.bring(name, lambda target: self._download(name, target), digest=digest)

    def verify(self, name: StepName) -> M:
        """Reads every file of the copy, which is fetched again when it is damaged."""
        digest = self._read(name)[0].digest
        return self._copies.verify(name, lambda target: self._download(name, target), digest=digest)

    def highest_fence(self) -> int | None:
        """Of steps and of who took over."""
        listing = self._list()
        return max({*listing.fences, *(name.fence for name in listing.steps)}, default=None)

    def sealed_fence(self) -> int | None:
        """The same: a learner that takes over says so in an object of its own."""
        return self.highest_fence()

    # --- the learner -----------------------------------------------------------------------------------

    def take_over(self, fence: int) -> None:
        """Write down what is visible now: nothing that an older fence adds later is.

        Only for the holder of the fence in the broker, before its first step is shared.
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
        if self._bucket.create(key, sealed_json(claim)):
            return
        found = self._read_claim(fence)
        if found.get("token") != self._token:
            raise Fenced(f"{self} was taken over by another learner with the same fence {fence}")

    def seal(self, temporary: Path, *, manifest: bytes, checksums: Checksums) -> M:
        """In the bucket, and then as a copy here.

        The manifest is another one only where an earlier attempt at the same step, with the same files, got
        through and its answer did not. Raises Fenced as well.
        """
        name = directory.step_of(temporary)
        found, content = self._share(name, temporary, manifest, checksums)
        self._copies.keep(temporary, content)
        return found

    def sweep(self, *, fence: int) -> list[str]:
        """Here and in the bucket. Spared are visible steps and what this object is writing."""
        swept = directory.sweep(self.path, fence=fence)
        # Before the look at the bucket, in which all that is sealed here is visible by then.
        copies = directory.step_names(self.path)
        listing, visible = self._look()
        for name in list(listing.steps):
            if name.fence > fence or self._is_being_written(name):
                continue
            if name in visible:
                rest = self._beside(name, listing)
                if rest:
                    self._bucket.delete([self._key(name, key) for key in rest])
                    swept.append(str(name))
            else:
                self._delete_objects(name)
                swept.append(str(name))
        self._bucket.delete(
            [self._claim_key(old) for old in listing.fences if old < min(fence, max(listing.fences))]
        )
        for copy in set(copies).difference(visible):
            # Of a zombie, or deleted in the bucket by another learner or by hand.
            directory.try_to_delete_step(self.path / str(copy))
        try:
            swept.extend(
                self._bucket.abort_uploads(self._root, is_dead=lambda key: self._is_dead(key, fence))
            )
        except StoreError as error:
            # Some stores keep no such list or do not show it; a rule of the bucket may do the same.
            log.warning("unfinished uploads below %s stay: %s", self, error.strerror)
        return swept

    def delete(self, name: StepName) -> bool:
        """In the bucket, unless another step is a difference to it (then False), and its copy here."""
        is_free = not is_needed(self._list().stored(), name)
        if is_free:
            self._delete_objects(name)
        self._copies.delete(name)
        return is_free

    def retain(self, name: StepName) -> None:
        """An empty object beside it."""
        self._bucket.create(f"{self._root}{name}{RETAINED}", b"")

    def retained(self) -> set[str]:
        """By the objects beside the steps."""
        return self._list().retained

    # --- inside ----------------------------------------------------------------------------------------

    def _share(self, name: StepName, written: Path, content: bytes, sums: Checksums) -> tuple[M, bytes]:
        wanted = self._kind.open(content, name=name, what=str(written))
        with self._writing(name):
            self._refuse_if_fenced(name.fence)
            ready = self._transfer.ready(wanted, written, sums, shelf=self._list(), copies=self._copies)
            with ready as (sent, stored):
                payload = sent.attempt.payload
                self._bucket.upload({self._key(name, payload, each): path for each, path in stored.items()})
            # Uploading takes its time: a learner that lost the run meanwhile should hear of it here.
            self._refuse_if_fenced(name.fence)
            if self._bucket.create(self._key(name, MANIFEST_NAME), content):
                self._transfer.note_shared(sent)
                return wanted, content
        self._forget(name)
        there, content = self._read(name)
        if there.files != wanted.files:
            raise FileExistsError(errno.EEXIST, "exists already and is never overwritten", f"{self}/{name}")
        return there, content

    def _read(self, name: StepName) -> tuple[M, bytes]:
        with self._lock:
            known = self._manifests.get(name)
        if known is not None:
            return known
        what = f"{self}/{name}"
        try:
            content = self._bucket.read(self._key(name, MANIFEST_NAME), max_bytes=MAX_MANIFEST_BYTES)
        except NoSuchObject as error:
            raise CorruptCheckpoint(f"{what} is gone, or was never complete") from error
        found = self._kind.open(content, name=name, what=what), content
        with self._lock:
            # A manifest never changes, so only memory limits how long it is remembered.
            while len(self._manifests) >= _MAX_MANIFESTS:
                del self._manifests[next(iter(self._manifests))]
            self._manifests[name] = found
        return found

    def _download(self, name: StepName, target: Path) -> bytes:
        """Its files, every digest checked, into an empty directory; returns the manifest."""
        log.info("Fetching the %s %s from %s", self._kind.noun, name, self)
        found, content = self._read(name)
        try:
            self._transfer.receive(found, target, shelf=self._list(), copies=self._copies)
        except (NoSuchObject, FileNotFoundError) as error:
            self._forget(name)
            raise CorruptCheckpoint(f"{self}/{name} was deleted while it was read") from error
        return content

    def _look(self) -> tuple[_Listing, list[StepName]]:
        """What is there, and what of it is visible, sorted."""
        for _ in range(_NUM_LOOKS):
            listing = self._list()
            complete = (name for name, sizes in listing.steps.items() if MANIFEST_NAME in sizes)
            present = sorted(complete, key=lambda name: name.rank)
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
        listing = _Listing(bucket=self._bucket, root=self._root)
        for found in self._bucket.find(self._root):
            head, _, rest = found.key.removeprefix(self._root).partition("/")
            name = parse_name(head.removesuffix(RETAINED))
            if rest and name is not None:
                listing.steps.setdefault(name, {})[rest] = found.size
            elif name is not None and head.endswith(RETAINED):
                listing.retained.add(str(name))
            elif (claim := _CLAIM.fullmatch(head)) is not None:
                listing.fences.add(int(claim[1]))
        return listing

    def _read_claim(self, fence: int) -> dict[str, Any]:
        key = self._claim_key(fence)
        content = self._bucket.read(key, max_bytes=MAX_MANIFEST_BYTES)
        try:
            claim = open_sealed_json(content, what=f"{self._bucket}/{key}")
        except CorruptCheckpoint as error:
            # Without it nobody knows what is visible: as bad as a store that does not answer.
            raise StoreError(str(error)) from error
        _CLAIM_FORMAT.check(claim.get(_CLAIM_FORMAT.name), what=f"{self._bucket}/{key}")
        return claim

    def _complete(self, name: StepName, listing: _Listing) -> M:
        found = self.manifest(name)
        for entry in found.files:
            links = links_of(listing.files_of, attempt_of(found), entry.name)
            if links is None or links[0].size != entry.size:
                raise CorruptCheckpoint(f"{self}/{name} lacks {entry.name}")
        return found

    def _refuse_if_fenced(self, fence: int) -> None:
        refuse_if_fenced(self, fence=fence, highest=self.highest_fence())

    def _beside(self, name: StepName, listing: _Listing) -> list[str]:
        """Objects of a visible step that its manifest does not mean: of other attempts."""
        try:
            payload = attempt_of(self.manifest(name)).payload
        except (CorruptCheckpoint, UnknownVersion):
            return []
        return [
            key for key in listing.steps[name] if key != MANIFEST_NAME and not key.startswith(f"{payload}/")
        ]

    def _delete_objects(self, name: StepName) -> None:
        """It vanishes with its manifest, then its files go."""
        self._forget(name)
        self._bucket.delete([self._key(name, MANIFEST_NAME)])
        self._bucket.delete([found.key for found in self._bucket.find(self._key(name, ""))])

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
