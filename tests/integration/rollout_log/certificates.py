"""A certificate authority and what it signs, made with openssl."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import require

_EC = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


@dataclass(frozen=True, kw_only=True)
class Pair:
    certificate: Path
    key: Path


class Authority:
    """Signs certificates for 127.0.0.1."""

    def __init__(self, folder: Path, name: str = "ca", *, days: int = 2) -> None:
        require(shutil.which("openssl") is not None, "openssl")
        self._folder, self._days = folder, days
        self.ca = self._request(name, "-x509", "-subj", f"/CN={name}")

    @property
    def certificate(self) -> Path:
        return self.ca.certificate

    def sign(self, name: str) -> Pair:
        signing = ("-x509", "-CA", str(self.ca.certificate), "-CAkey", str(self.ca.key))
        names = ("-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1")
        return self._request(name, *signing, *names, "-addext", "basicConstraints=critical,CA:FALSE")

    def _request(self, name: str, *flags: str) -> Pair:
        pair = Pair(certificate=self._folder / f"{name}.crt", key=self._folder / f"{name}.key")
        files = ("-keyout", str(pair.key), "-out", str(pair.certificate))
        subprocess.run(
            ["openssl", "req", *_EC, "-days", str(self._days), *flags, *files],
            check=True,
            capture_output=True,
        )
        return pair
