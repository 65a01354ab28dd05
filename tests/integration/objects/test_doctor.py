"""`asympo doctor` tries an object store with the requests that checkpoints make."""

from pathlib import Path

from asympo.common.object_store import ObjectStoreOptions
from asympo.common.settings import dump_toml
from asympo.doctor.checks import Target, check_store
from asympo.doctor.command import parse, target_of
from asympo.doctor.findings import Finding, Level


def findings_of(options: ObjectStoreOptions | None, *, is_reader: bool = False) -> list[Finding]:
    target = Target(directory=Path(), redis_url=None, ports=(), object_store=options, is_reader=is_reader)
    return list(check_store(target))


def test_doctor_finds_a_store_that_works_and_needs_less_of_a_reader(options: ObjectStoreOptions) -> None:
    findings = findings_of(options)
    assert [finding.level for finding in findings] == [Level.OK] * 5
    assert len(findings_of(options, is_reader=True)) == 1
    assert findings_of(None) == []


def test_doctor_names_the_fault_and_its_repair_when_the_bucket_is_missing(
    options: ObjectStoreOptions,
) -> None:
    absent = options.model_copy(update={"url": "s3://no-such-bucket/prefix"})
    (finding,) = findings_of(absent)
    assert (finding.level, "NoSuchBucket" in finding.text) == (Level.WRONG, True)
    assert finding.repair


def test_doctor_takes_the_store_of_a_service_and_flags_override_it(
    options: ObjectStoreOptions, tmp_path: Path
) -> None:
    file = tmp_path / "learner.toml"
    file.write_text(
        dump_toml({"run": "x", "object_store": options.model_dump(exclude_none=True)}, comment="x")
    )
    assert target_of(parse(["--settings", str(file)])).object_store == options
    other = target_of(parse(["--settings", str(file), "--object-store.url", "s3://other"])).object_store
    assert other is not None
    assert (other.url, other.endpoint) == ("s3://other", options.endpoint)
    assert target_of(parse([])).object_store is None
