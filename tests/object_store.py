"""An S3 server of our own, as a process that answers HTTP."""

import functools
import urllib.request
from pathlib import Path
from typing import Any, Self

import boto3
from asympo.common.object_store import ObjectStoreOptions
from asympo.local.ports import free_port
from asympo.local.process import Process

from tests.conftest import require

PROGRAM = Path(__file__).parents[1] / ".cache/s3-server/bin/moto_server"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test-secret"}
START_SECONDS = 120.0


class ObjectServer(Process):
    """Holds everything in memory."""

    def __init__(self, log_path: Path) -> None:
        require(PROGRAM.exists(), "the S3 server (make object-store-tools)")
        port = free_port()
        self.endpoint = f"http://127.0.0.1:{port}"
        command = [str(PROGRAM), "--host", "127.0.0.1", "--port", str(port)]
        super().__init__(command=command, log_path=log_path)

    def wait_until_ready(self) -> Self:
        self.until(self._answers, seconds=START_SECONDS, what="answer of the S3 server")
        return self

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.endpoint}/moto-api/", timeout=5):
                return True
        except OSError:
            return False

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
