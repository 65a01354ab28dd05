"""A learner's publish that ends by SIGKILL: `python -m tests.object_store_victim POINT ROOT RUN OPTIONS`."""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
from asympo.common.checkpoints import PolicyStore, Probe, ProbeSequence
from asympo.common.checkpoints.bucket import Bucket
from asympo.common.checkpoints.bucket_steps import BucketSteps
from asympo.common.checkpoints.store import POLICIES
from asympo.common.object_store import ObjectStoreOptions
from boto3.s3.transfer import TransferConfig
from safetensors.numpy import save_file

PROBE = Probe(
    sequences=(ProbeSequence(token_ids=(1, 2, 3), num_prompt_tokens=1, mean_nll=2.5),), tolerance=0.02
)
PART_BYTES = 5 << 20
"""The least that S3 takes as a part."""


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class DyingBucket(Bucket):
    """Dies before the manifest, or once a part of a file is there."""

    def __init__(self, options: ObjectStoreOptions, *, point: str) -> None:
        super().__init__(options)
        self._point = point
        self._num_bytes = 0

    def create(self, key: str, content: bytes) -> bool:
        step = {"before-manifest": 1, "before-manifest-of-delta": 2}.get(self._point)
        if key.endswith(f"step-{step:08d}-f0001/manifest.json" if step else "\0"):
            die()
        return super().create(key, content)

    def _upload(self, key: str, path: Path) -> None:
        def count(num_bytes: int) -> None:
            self._num_bytes += num_bytes
            if self._point == "inside-upload" and self._num_bytes > PART_BYTES:
                die()

        one_by_one = TransferConfig(
            multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, use_threads=False
        )
        self._client.upload_file(str(path), self._name, self._prefix + key, Config=one_by_one, Callback=count)


def policies_in(
    bucket: Bucket, root: Path, run: str, *, cached: int = 3, keyframe_every: int = 1
) -> PolicyStore:
    """As one machine has them, with copies in its own directory."""
    return PolicyStore(
        BucketSteps(root, run, POLICIES, bucket=bucket, cached=cached, keyframe_every=keyframe_every)
    )


def main(point: str, root: str, run: str, options: str) -> None:
    bucket = DyingBucket(ObjectStoreOptions(**json.loads(options)), point=point)
    store = policies_in(bucket, Path(root), run, keyframe_every=8)
    store.take_over(1)

    def fill(path: Path) -> None:
        save_file({"body": np.ones((4, 1 << 20), np.float32)}, path / "model.safetensors")
        (path / "config.json").write_text("{}")

    for step in (1, 2):
        store.publish(step=step, fence=1, fill=fill, probe=PROBE)


if __name__ == "__main__":
    main(*sys.argv[1:])
