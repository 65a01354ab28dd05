"""Settings of what shares checkpoints; light, because every service's settings hold them."""

import re
from typing import Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from asympo.common.paths import OptionalPath

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_KEY_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class DeltaOptions(BaseModel):
    """How policies are shared, whatever holds them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    keyframe_every: int = Field(
        default=8,
        ge=1,
        le=32,
        description="every how many policies the learner shares whole weights, else differences; 1: always",
    )
    cache: OptionalPath = Field(
        default=None,
        description="directory on this machine's own disk for whole copies of policies that are shared as "
        "differences in a directory; if not given, in the temporary directory",
    )


class ObjectStoreOptions(BaseModel):
    """Where checkpoints are shared when machines have no directory in common; off without a URL.

    Credentials are not settings: they come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile file,
    or the identity that the cluster gives a pod, as in every client of S3.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str | None = Field(
        default=None, description="s3://BUCKET/PREFIX that all machines share; checkpoint_root is then local"
    )
    endpoint: str | None = Field(
        default=None, description="http(s) address of the store; if not given, AWS's own"
    )
    region: str | None = Field(
        default=None, description="region of the bucket; if not given, the environment's"
    )
    ca_file: OptionalPath = Field(
        default=None, description="PEM file: the authority that signs the store's certificate"
    )
    cached_policies: int = Field(
        default=3, ge=2, description="policies that a generator keeps on its own disk"
    )

    @field_validator("url")
    @classmethod
    def _is_s3(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        prefix = [part for part in parts.path.split("/") if part]
        if parts.scheme != "s3" or parts.query or parts.fragment or not _BUCKET.fullmatch(parts.netloc):
            raise ValueError("give s3://BUCKET or s3://BUCKET/PREFIX, without user, port or query")
        if not all(_KEY_PART.fullmatch(part) for part in prefix):
            raise ValueError(
                "the prefix may hold letters, digits, dots, dashes and underscores between slashes"
            )
        return "/".join(["s3:/", parts.netloc, *prefix])

    @field_validator("endpoint")
    @classmethod
    def _is_http(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise ValueError("give https://HOST or https://HOST:PORT, without credentials")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _has_a_url(self) -> Self:
        given = [name for name in ("endpoint", "region", "ca_file") if getattr(self, name) is not None]
        if given and self.url is None:
            raise ValueError(f"object_store.{given[0]} without object_store.url: give the bucket as well")
        if self.ca_file is not None and (self.endpoint or "").startswith("http://"):
            raise ValueError("object_store.ca_file is for https, and object_store.endpoint is http")
        return self

    @property
    def is_given(self) -> bool:
        """Whether checkpoints are shared through a store."""
        return self.url is not None

    @property
    def bucket(self) -> str:
        """Name of the bucket; only with a URL."""
        return urlsplit(self.url or "").netloc

    @property
    def prefix(self) -> str:
        """What every key begins with: empty, or ending in a slash."""
        path = urlsplit(self.url or "").path.strip("/")
        return f"{path}/" if path else ""
