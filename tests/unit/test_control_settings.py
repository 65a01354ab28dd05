"""Settings of the control service's door: what is refused, and the roles that subjects give."""

import pytest
from asympo.common.control.roles import Role, role_of
from asympo.common.errors import BadSetting
from asympo.generator.settings import GeneratorSettings
from asympo.learner.settings import LearnerSettings

FILES = ("--grpc-tls.certificate", "/a", "--grpc-tls.key", "/b", "--grpc-tls.client-ca", "/c")


@pytest.mark.parametrize("settings", [LearnerSettings, GeneratorSettings])
def test_every_address_may_be_bound_with_certificates(
    settings: type[LearnerSettings] | type[GeneratorSettings],
) -> None:
    assert settings.load([*FILES, "--grpc-host", "0.0.0.0"], environ={}).grpc_host == "0.0.0.0"
    with pytest.raises(BadSetting, match=r"0\.0\.0\.0.*give grpc_tls\.certificate, grpc_tls\.key and"):
        settings.load(["--grpc-host", "0.0.0.0"], environ={})
    with pytest.raises(BadSetting, match="protected by its file mode: give an address, or leave"):
        settings.load([*FILES, "--grpc-host", "unix:/run/a.sock"], environ={})


@pytest.mark.parametrize("left_out", [0, 2, 4])
def test_two_files_of_three_are_refused_by_what_is_missing(left_out: int) -> None:
    given = [*FILES[:left_out], *FILES[left_out + 2 :]]
    name = FILES[left_out].rpartition(".")[2].replace("-", "_")
    with pytest.raises(BadSetting, match=f": {name} missing: give certificate, key and client_ca, or none"):
        LearnerSettings.load([*given, "--grpc-host", "0.0.0.0"], environ={})


@pytest.mark.parametrize(
    ("subject", "role"),
    [
        (rb"CN=a,OU=asympo:viewer", Role.VIEWER),
        (rb"OU=asympo:viewer,CN=a,OU=asympo:operator", Role.OPERATOR),
        (rb"CN=a+OU=asympo:operator,O=x\, y", Role.OPERATOR),
        (rb"CN=a\,OU=asympo:operator", None),
        (rb"CN=a\+OU=asympo:operator,O=\C3\A9", None),
        (rb"CN=a\\,OU=asympo:operator", Role.OPERATOR),
        (rb"CN=a,OU=asympo:operators", None),
        (rb"CN=a,OU=ASYMPO:OPERATOR", None),
        (rb"CN=OU=asympo:operator", None),
        (b"", None),
    ],
)
def test_role_is_an_organizational_unit_and_nothing_that_looks_like_one(
    subject: bytes, role: Role | None
) -> None:
    assert role_of({"x509_subject": [subject]}) is role


def test_caller_without_certificate_has_no_role() -> None:
    assert role_of({}) is None
