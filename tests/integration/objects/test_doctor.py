"""`asympo doctor` tries an object store with the requests that checkpoints make."""

from pathlib import Path

from asympo.common.object_store import ObjectStoreOptions
from asympo.common.settings import dump_toml
from asympo.doctor.command import examined_store, parse
from asympo.doctor.findings import Level
from asympo.doctor.object_store import check_object_store


def test_doctor_finds_a_store_that_works_and_needs_less_of_a_reader(options: ObjectStoreOptions) -> None:
    findings = list(check_object_store(options, is_reader=False))
    assert [finding.level for finding in findings] == [Level.OK] * 5
    assert len(list(check_object_store(options, is_reader=True))) == 1
    assert list(check_object_store(None, is_reader=False)) == []


def test_doctor_names_the_fault_and_its_repair_when_the_bucket_is_missing(
    options: ObjectStoreOptions,
) -> None:
    absent = options.model_copy(update={"url": "s3://no-such-bucket/prefix"})
    (finding,) = check_object_store(absent, is_reader=False)
    assert (finding.level, "NoSuchBucket" in finding.text) == (Level.WRONG, True)
    assert finding.repair


def test_doctor_takes_the_store_of_a_service_and_flags_override_it(
    options: ObjectStoreOptions, tmp_path: Path
) -> None:
    file = tmp_path / "learner.toml"
    file.write_text(
        dump_toml({"run": "x", "object_store": options.model_dump(exclude_none=True)}, comment="x")
    )
    assert examined_store(parse(["--settings", str(file)])) == options
    other = examined_store(parse(["--settings", str(file), "--object-store.url", "s3://other"]))
    assert other is not None
    assert (other.url, other.endpoint) == ("s3://other", options.endpoint)
    assert examined_store(parse([])) is None
