"""The ends of certificates as a metric."""

import math
import time
from pathlib import Path

from asympo.common.control.certificate_ends import certificate_ends, end_of
from asympo.common.control.settings import TlsFiles
from asympo.common.telemetry import add_certificate_ends
from prometheus_client import CollectorRegistry

from tests.integration.rollout_log.certificates import Authority

DAY = 86400


def test_ends_of_the_certificates_in_the_settings(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    server = authority.sign("server")
    tls = TlsFiles(certificate=server.certificate, key=server.key, client_ca=authority.certificate)
    url = f"rediss://host:6379/0?ssl_ca_certs={authority.certificate}"
    registry = CollectorRegistry()
    add_certificate_ends(
        registry, service="learner", ends=certificate_ends(redis_url=url, grpc_tls=tls, object_store=None)
    )
    for use in ("control", "control-client-ca", "broker-ca"):
        labels = {"service": "learner", "certificate": use}
        found = registry.get_sample_value("asympo_certificate_expires_timestamp_seconds", labels)
        assert found is not None
        # Made a moment ago for two days.
        assert abs(found - time.time() - 2 * DAY) < 600
    # A renewed Secret is seen, and one that is gone is no reason to stop answering.
    server.certificate.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    labels = {"service": "learner", "certificate": "control"}
    value = registry.get_sample_value("asympo_certificate_expires_timestamp_seconds", labels)
    assert value is not None
    assert math.isnan(value)


def test_chain_ends_with_its_first_and_authorities_with_their_last(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    short, long = authority.sign("a").certificate, tmp_path / "long.crt"
    other = Authority(tmp_path, "other", days=30).certificate
    long.write_bytes(short.read_bytes() + other.read_bytes())
    assert end_of("control", long) == end_of("control", short)
    assert end_of("broker-ca", long) == end_of("control", other) > end_of("control", short) + 27 * DAY
