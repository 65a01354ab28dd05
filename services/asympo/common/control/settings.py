"""Settings of a control service's door, the same for every service that has one."""

import ipaddress
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from asympo.common.paths import OptionalPath
from asympo.common.settings import ServiceSettings

Port = Annotated[int, Field(ge=0, le=65535)]


class TlsFiles(BaseModel):
    """Files of mutual TLS: all three, or none."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    certificate: OptionalPath = Field(default=None, description="PEM file: the server's certificate (chain)")
    key: OptionalPath = Field(default=None, description="PEM file: its private key, without a passphrase")
    client_ca: OptionalPath = Field(
        default=None, description="PEM file: the authority that signs the callers' certificates"
    )

    @model_validator(mode="after")
    def _all_or_none(self) -> Self:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        missing = [name for name in type(self).model_fields if name not in given]
        if given and missing:
            raise ValueError(f"{' and '.join(missing)} missing: give certificate, key and client_ca, or none")
        return self

    @property
    def is_given(self) -> bool:
        """Whether the door is TLS."""
        return self.certificate is not None


class ControlSettings(ServiceSettings):
    """A service with a control service."""

    grpc_tls: TlsFiles = TlsFiles()
    grpc_host: str = Field(
        default="127.0.0.1", description="address of gRPC, or unix:PATH; beyond loopback it needs grpc_tls"
    )
    grpc_port: Port = Field(default=50051, description="port of gRPC; 0 picks one")
    debug: bool = Field(default=False, description="gRPC reflection on the control service")

    @field_validator("grpc_host")
    @classmethod
    def _is_guarded(cls, value: str, info: ValidationInfo) -> str:
        tls = info.data.get("grpc_tls")
        if tls is None:
            # Wrong itself, and reported as that.
            return value
        if value.startswith("unix:"):
            if tls.is_given:
                raise ValueError(
                    "a unix socket is protected by its file mode: give an address, or leave grpc_tls out"
                )
            return value
        if not tls.is_given and not is_loopback(value):
            raise ValueError(
                "beyond this machine callers must present certificates: give grpc_tls.certificate, "
                "grpc_tls.key "
                "and grpc_tls.client_ca, or else give a loopback address or unix:PATH"
            )
        return value

    @property
    def grpc_address(self) -> str:
        """What gRPC binds."""
        if self.grpc_host.startswith("unix:"):
            return self.grpc_host
        host = f"[{self.grpc_host}]" if ":" in self.grpc_host else self.grpc_host
        return f"{host}:{self.grpc_port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
