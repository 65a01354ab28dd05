"""Settings of one gateway. Capacity, group size and the task come from the run itself."""

from typing import ClassVar, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from asympo.common.control.settings import ControlSettings, Port, is_loopback
from asympo.common.paths import OptionalPath


class GatewaySettings(ControlSettings, protected_namespaces=()):
    """Settings of a gateway."""

    service: ClassVar[str] = "gateway"

    http_host: str = Field(
        default="127.0.0.1", description="address of HTTP; beyond loopback it needs producers"
    )
    http_port: Port = Field(default=8090, description="port of HTTP; 0 picks one")
    grpc_port: Port = Field(default=50053, description="port of gRPC; 0 picks one")
    producers: OptionalPath = Field(
        default=None, description="TOML file of producers and their tokens; none: a single producer, local"
    )
    model: str | None = Field(
        default=None, description="where the run's model is on this machine, if elsewhere"
    )
    task_path: str | None = Field(
        default=None, description="where the task's file is on this machine, if elsewhere"
    )
    max_body_bytes: int = Field(default=64 * 2**20, ge=1024, description="largest HTTP body or gRPC message")
    max_queued_groups: int = Field(
        default=256,
        ge=1,
        description="groups of one producer that wait for a slot; further calls wait until there is room",
    )
    slot_wait_seconds: float = Field(
        default=10.0, gt=0.0, le=60.0, description="how long a single submission waits for a slot"
    )
    doors: tuple[str, ...] = Field(
        default=(), description="addresses of generators' doors (http://HOST:PORT/v1); none: no sessions"
    )
    doors_token: OptionalPath = Field(default=None, description="file with the token that doors ask for")
    model_name: str = Field(default="policy", min_length=1, description="name of the model at the doors")
    session_seconds: float = Field(
        default=600.0, gt=0.0, description="time limit of a session; at most 0.9 of max_lease_seconds"
    )
    request_seconds: float = Field(
        default=600.0, gt=0.0, description="time limit for one request of an agent"
    )
    drain_seconds: float = Field(
        default=10.0, ge=0.0, description="time for calls in flight to finish at a stop"
    )

    @field_validator("doors")
    @classmethod
    def _doors_are_addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for address in value:
            parts = urlsplit(address)
            if parts.scheme not in ("http", "https") or not parts.hostname or "," in address:
                raise ValueError(f"{address} is no address of a door: give http://HOST:PORT/v1, one each")
            if parts.username is not None or (parts.port or 1) < 1:
                raise ValueError(f"the address of the door at {parts.hostname} holds more than host and port")
        return value

    @model_validator(mode="after")
    def _http_is_guarded(self) -> Self:
        if self.producers is None and not is_loopback(self.http_host):
            raise ValueError(
                f"http_host is {self.http_host}: beyond this machine callers need tokens, so give producers "
                "or a loopback address"
            )
        if self.http_port and self.http_port == self.grpc_port and not self.grpc_host.startswith("unix:"):
            raise ValueError(f"http_port and grpc_port are both {self.http_port}: give two different ones")
        return self
