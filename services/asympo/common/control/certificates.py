"""The server's certificates: checked when the process starts, read again when their files change."""

import logging
import ssl
import stat
from dataclasses import dataclass
from pathlib import Path

import grpc

from asympo.common.control.settings import TlsFiles
from asympo.common.errors import BadSetting

log = logging.getLogger(__name__)

_MAX_TRIES = 3


@dataclass(frozen=True, kw_only=True)
class _Pems:
    """What the three files held at one moment."""

    certificate: bytes
    key: bytes
    client_ca: bytes


class Certificates:
    """Credentials of a server that follow their files: a mounted Secret changes under a running process."""

    def __init__(self, files: TlsFiles) -> None:
        """Raises BadSetting when a file cannot be read or they do not belong together."""
        if files.certificate is None or files.key is None or files.client_ca is None:
            raise BadSetting("grpc_tls is not given: give certificate, key and client_ca")
        self._paths = (files.certificate, files.key, files.client_ca)
        self._current = self._checked()
        self._problem = ""

    def credentials(self) -> grpc.ServerCredentials:
        """For one server. Callers without a certificate of the authority do not get past the handshake."""
        return grpc.dynamic_ssl_server_credentials(
            _configuration(self._current), self._changed, require_client_authentication=True
        )

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Asked by gRPC at each handshake; None keeps the present ones, and so does a file that is wrong."""
        try:
            if self._read() == self._current:
                self._problem = ""
                return None
            self._current = self._checked()
        except BadSetting as error:
            # A rotation may replace one file after the other, and anybody can start handshakes: say it once.
            if str(error) != self._problem:
                log.error("Certificates of the control service stay as they were: %s", error)
            self._problem = str(error)
            return None
        self._problem = ""
        log.info("Certificates of the control service have changed and are in use")
        return _configuration(self._current)

    def _checked(self) -> _Pems:
        certificate, key, client_ca = self._paths
        for _ in range(_MAX_TRIES):
            pems = self._read()
            _require_certificates(pems.certificate, f"grpc_tls.certificate {certificate}")
            _require_certificates(pems.client_ca, f"grpc_tls.client_ca {client_ca}")
            _require_pair(certificate, key)
            # The pair is checked on the files: only what they still hold has been checked.
            if self._read() == pems:
                _warn_if_readable_by_all(key)
                return pems
        raise BadSetting(
            f"the files of grpc_tls changed while they were being read: {certificate}, {key}, {client_ca}"
        )

    def _read(self) -> _Pems:
        certificate, key, client_ca = self._paths
        return _Pems(
            certificate=_content(certificate, "certificate"),
            key=_content(key, "key"),
            client_ca=_content(client_ca, "client_ca"),
        )


def _configuration(pems: _Pems) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(pems.key, pems.certificate)], root_certificates=pems.client_ca
    )


def _content(path: Path, name: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadSetting(f"cannot read grpc_tls.{name} {path}: {error.strerror}") from None


def _require_certificates(pem: bytes, what: str) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=pem.decode("ascii"))
    except (ssl.SSLError, UnicodeDecodeError, ValueError):
        raise BadSetting(
            f"{what} holds no certificate: give one in PEM (-----BEGIN CERTIFICATE-----)"
        ) from None


def _require_pair(certificate: Path, key: Path) -> None:
    def refuse_passphrase() -> str:
        raise BadSetting(f"grpc_tls.key {key} has a passphrase: give the key without one (openssl pkey)")

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, refuse_passphrase)
    except OSError as error:
        reason = str(getattr(error, "reason", None) or error.strerror or error)
        if "MISMATCH" in reason:
            raise BadSetting(
                f"grpc_tls.key {key} is not the key of grpc_tls.certificate {certificate}: give the two that "
                "were made together"
            ) from None
        raise BadSetting(
            f"grpc_tls.key {key} cannot be used with grpc_tls.certificate {certificate} ({reason}): "
            "give its private key in PEM"
        ) from None


def _warn_if_readable_by_all(key: Path) -> None:
    if key.stat().st_mode & stat.S_IROTH:
        log.warning("Everybody on this machine may read grpc_tls.key %s: chmod 0640 or less", key)
