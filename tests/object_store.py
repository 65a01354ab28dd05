"""An S3 server of our own, as a process that answers HTTP."""

import functools
import os
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import boto3
from asympo.common.object_store import ObjectStoreOptions

from tests.conftest import free_port, require

PROGRAM = Path(__file__).parents[1] / ".cache/s3-server/bin/moto_server"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test-secret"}
START_SECONDS = 120.0


class ObjectServer:
    """Holds everything in memory; ends with `stop`."""

    def __init__(self, log_path: Path) -> None:
        require(PROGRAM.exists(), "the S3 server (make object-store-tools)")
        self.port = free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._log = log_path.open("wb")
        self._process = subprocess.Popen(
            [str(PROGRAM), "--host", "127.0.0.1", "--port", str(self.port)],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        )

    def wait_until_ready(self) -> "ObjectServer":
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.endpoint}/moto-api/", timeout=5):
                    return self
            except (urllib.error.URLError, OSError):
                if self._process.poll() is not None:
                    raise RuntimeError(f"the S3 server ended with {self._process.returncode}") from None
                time.sleep(0.1)
        raise RuntimeError("the S3 server did not answer")

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()
        self._log.close()

    @functools.cached_property
    def client(self) -> Any:
        """A client beside the one under test, for looking and for damage."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        )

    def options(self, bucket: str) -> ObjectStoreOptions:
        """A new bucket, with a prefix."""
        self.client.create_bucket(Bucket=bucket)
        return ObjectStoreOptions(url=f"s3://{bucket}/some/prefix", endpoint=self.endpoint)
