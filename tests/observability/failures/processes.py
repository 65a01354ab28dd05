"""Engines, files and what surrounds a run: the alerts of asympo-processes, and some that come with them."""

import os
import shutil

from asympo.chaos.volume import Volume
from asympo.local.process import import_path

from tests.integration.rollout_log.certificates import Authority
from tests.observability.failures.scene import QUICK, Failure, Scene


def generators_err(scene: Scene) -> None:
    """Three of four: an engine that fails, one that computes something else, a journal on a full disk."""
    control = scene.shim("control")
    learner = scene.learner(publish_every=4, max_staleness=3)
    scene.generator(simulated=QUICK)
    scene.faulty_generator("fails", simulated=QUICK)
    scene.faulty_generator("drifts", simulated=QUICK)
    journal = scene.root / "journal"
    scene.generator(
        simulated=QUICK, append_journal=str(journal / "appends.jsonl"), environment=control.environment
    )
    scene.train(learner)
    scene.goes_on(20)
    scene.break_engines()
    control.fill_disk(journal)
    scene.goes_on(30)


def run_is_neglected(scene: Scene) -> None:
    """A full volume, a tracker that is gone, an upgrade left half done, a certificate nobody renews."""
    volume = Volume(scene.root, size_mb=256)
    volume.mount()
    scene.ends_with(volume.unmount)
    authority = Authority(scene.root, days=10)
    server = authority.sign("server")
    tls = {
        "certificate": str(server.certificate),
        "key": str(server.key),
        "client_ca": str(authority.certificate),
    }
    other = scene.root / "other/asympo-99.0.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: asympo\nVersion: 99.0\n")
    scene.storage = volume.path
    learner = scene.learner(
        publish_every=4,
        trackers={"enabled": ["mlflow"], "mlflow_uri": "http://127.0.0.1:1"},
        # It tries for minutes before it tells.
        environment={"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"},
    )
    scene.generator(simulated=QUICK, grpc_tls=tls)
    scene.generator(simulated=QUICK, environment={"PYTHONPATH": f"{other.parent}:{import_path()}"})
    scene.train(learner)
    room = shutil.disk_usage(volume.path)
    with (volume.path / "other").open("wb") as other_files:
        os.posix_fallocate(other_files.fileno(), 0, room.free - room.total // 12)
    scene.goes_on(70)


FAILURES = {
    "generators err": Failure(
        make=generators_err,
        alerts={"AsympoEngineFailures", "AsympoProbeDrift", "AsympoPromptFailures", "AsympoUnexpectedErrors"},
    ),
    "run is neglected": Failure(
        make=run_is_neglected,
        alerts={"AsympoCertificateEnds", "AsympoStorageLow", "AsympoTrackerFailing", "AsympoVersionsDiffer"},
    ),
}
