"""Policies and training states: the alerts of asympo-policies."""

from tests.observability.failures.scene import QUICK, Failure, Scene


def reloads_change_nothing(scene: Scene) -> None:
    learner = scene.learner()
    for _ in range(2):
        scene.generator(simulated={"faults": {"stale_steps": [4, 5, 6]}})
    scene.train(learner)
    scene.goes_on(45)


def disk_is_full(scene: Scene) -> None:
    control = scene.shim("control")
    learner = scene.learner(environment=control.environment, publish_retry_seconds=0.5)
    for _ in range(2):
        scene.generator()
    scene.train(learner)
    scene.goes_on(15)
    control.fill_disk(scene.checkpoints)
    scene.goes_on(65)


def states_cannot_be_saved(scene: Scene) -> None:
    """There is room for policies and none for training states."""
    control = scene.shim("control")
    scene.run(environment=control.environment, publish_retry_seconds=0.5)
    control.fill_disk(scene.checkpoints / "train")
    scene.goes_on(75)


def nothing_is_published(scene: Scene) -> None:
    """Nor saved: somebody gave far too many steps between two policies."""
    learner = scene.learner(publish_every=5000, save_every=5000, groups_per_step=2)
    scene.generator()
    # From its start on: with it comes the only policy.
    learner.until(scene.has_stepped, seconds=200)
    scene.goes_on(75)


def policies_do_not_change(scene: Scene) -> None:
    """The learning rate is too small to change a weight of a policy."""
    learner = scene.learner(learning_rate=1e-12)
    for _ in range(2):
        scene.generator(simulated=QUICK, max_consistent_reloads=20)
    scene.train(learner)
    scene.goes_on(50)


def policy_is_damaged(scene: Scene) -> None:
    """While no generator is there that had read it."""
    learner, generators = scene.learner(publish_every=4), []
    for name in ("one", "other"):
        # Of a machine of its own: it has no copy of what another one read.
        own = scene.root / name
        own.mkdir()
        generators.append(scene.generator(simulated=QUICK, environment={"TMPDIR": str(own)}))
    scene.train(learner)
    scene.goes_on(20)
    for generator in generators:
        generator.kill()
    # What is left in the log is trained and published.
    scene.goes_on(5)
    scene.pause(True)
    scene.goes_on(2)
    newest = max((scene.checkpoints / "policy").glob("step-*"))
    weights = max(newest.iterdir(), key=lambda path: path.stat().st_size)
    weights.write_bytes(weights.read_bytes()[:-100])
    for generator in generators:
        generator.start()
    scene.goes_on(30)
    scene.pause(False)
    scene.goes_on(20)


def generator_loses_storage(scene: Scene) -> None:
    """One of two: what was mounted is gone."""
    learner = scene.learner(publish_every=4, max_staleness=3)
    mounted = scene.root / "mounted"
    mounted.symlink_to(scene.root / "checkpoints")
    scene.generator(simulated=QUICK)
    scene.generator(simulated=QUICK, checkpoint_root=str(mounted))
    scene.train(learner)
    scene.goes_on(20)
    mounted.unlink()
    scene.goes_on(50)


FAILURES = {
    "reloads change nothing": Failure(
        make=reloads_change_nothing, alerts={"AsympoLearnerStarved", "AsympoProbeFailed"}
    ),
    "disk is full": Failure(
        make=disk_is_full, alerts={"AsympoLearnerStarved", "AsympoPublishFailing", "AsympoSlotsExhausted"}
    ),
    "states cannot be saved": Failure(
        make=states_cannot_be_saved, alerts={"AsympoBacklogStuck", "AsympoSaveFailing"}
    ),
    "nothing is published": Failure(
        make=nothing_is_published, alerts={"AsympoPolicyOld", "AsympoStateOld"}, pace=120
    ),
    "policies do not change": Failure(make=policies_do_not_change, alerts={"AsympoReloadsUnproven"}),
    "policy is damaged": Failure(make=policy_is_damaged, alerts={"AsympoCorruptPolicies"}),
    "generator loses storage": Failure(make=generator_loses_storage, alerts={"AsympoReloadsStopped"}),
}
