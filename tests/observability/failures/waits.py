"""Who waits for whom, and who is gone: the alerts of asympo-waits."""

import signal
import time

from tests.observability.failures.scene import QUICK, Failure, Scene


def generators_end(scene: Scene) -> None:
    _, generators = scene.run()
    for generator in generators:
        generator.kill()
    scene.goes_on(65)


def learner_ends(scene: Scene) -> None:
    learner, _ = scene.run()
    learner.kill()
    scene.goes_on(35)


def two_learners(scene: Scene) -> None:
    """Two release each with a learner that takes the run over, started again by their orchestrators."""
    learners = [scene.learner("--take-over"), scene.learner("--take-over")]
    learners[0].until(scene.checkpoints.exists, seconds=200)
    scene.begun = time.time()
    until = time.monotonic() + 120
    while time.monotonic() < until:
        for learner in learners:
            if not learner.is_running:
                learner.start()
        scene.goes_on(0.2)


def too_few_generators(scene: Scene) -> None:
    learner = scene.learner(max_staleness=3)
    scene.generator(max_groups_in_flight=1, simulated={"seconds_per_token": 0.02})
    scene.train(learner)
    scene.goes_on(60)


def frozen_learner(scene: Scene) -> None:
    """Stopped by a debugger, or by a node that hangs: it answers nobody."""
    learner, _ = scene.run()
    learner.send(signal.SIGSTOP)
    scene.goes_on(40)
    learner.send(signal.SIGCONT)


def too_many_generators(scene: Scene) -> None:
    """Steps are long, as they are on a cluster: reading what is trained next takes no time beside them."""
    scene.use_model(hidden_size=512, num_layers=6)
    learner = scene.learner(max_staleness=3, groups_per_step=16)
    for _ in range(3):
        scene.generator(simulated=QUICK)
    scene.train(learner)
    scene.goes_on(85)


def generators_hang(scene: Scene) -> None:
    """Their engines answer no more. They renew their leases until these have lasted as long as they may."""
    # Played at a minute a second, that is what the settings say where nothing else is given.
    learner = scene.learner(lease_seconds=2.0, max_lease_seconds=15.0)
    for _ in range(2):
        scene.faulty_generator("hangs")
    scene.train(learner)
    scene.goes_on(20)
    scene.break_engines()
    scene.goes_on(50)


def storage_hangs(scene: Scene) -> None:
    """As that of a network does: what is written does not come back."""
    control = scene.shim("control")
    scene.run(environment=control.environment)
    control.slow_fsync(3600)
    scene.goes_on(50)


def learner_pauses(scene: Scene) -> None:
    """And is forgotten."""
    scene.run()
    scene.pause(True)
    scene.goes_on(70)


def only_some_are_scraped(scene: Scene) -> None:
    """Nobody asks the learner; one generator of three has been given the address of no broker."""
    learner = scene.learner(is_scraped=False)
    for _ in range(2):
        scene.generator(simulated=QUICK)
    scene.generator(redis_url="redis://127.0.0.1:1/0")
    scene.train(learner)
    scene.goes_on(50)


FAILURES = {
    "generators end": Failure(make=generators_end, alerts={"AsympoNoGenerators"}),
    "learner ends": Failure(make=learner_ends, alerts={"AsympoLearnerGone"}),
    "two learners": Failure(make=two_learners, alerts={"AsympoFenceFlaps"}, pace=10),
    "too few generators": Failure(make=too_few_generators, alerts={"AsympoLearnerStarved"}),
    "frozen learner": Failure(make=frozen_learner, alerts={"AsympoLearnerGone"}),
    "too many generators": Failure(make=too_many_generators, alerts={"AsympoGeneratorsIdle"}),
    "generators hang": Failure(
        make=generators_hang, alerts={"AsympoGeneratorStalled", "AsympoLeaseExpiries", "AsympoNoGroups"}
    ),
    "storage hangs": Failure(make=storage_hangs, alerts={"AsympoBacklogStuck"}),
    "learner pauses": Failure(make=learner_pauses, alerts={"AsympoLearnerPaused"}),
    "only some are scraped": Failure(
        make=only_some_are_scraped,
        alerts={"AsympoGeneratorNotReady", "AsympoLearnerMissing"},
    ),
}
