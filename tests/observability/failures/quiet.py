"""Runs without a failure: no alert may fire."""

from tests.observability.failures.scene import QUICK, Failure, Scene


def healthy(scene: Scene) -> None:
    """From the start of the learner; generators come up late, the run is paused and goes on."""
    learner = scene.learner(publish_every=4)
    scene.goes_on(10)
    for _ in range(2):
        scene.generator(simulated=QUICK)
    learner.until(scene.has_stepped, seconds=200)
    scene.goes_on(20)
    scene.pause(True)
    scene.goes_on(60)
    scene.pause(False)
    scene.goes_on(80)


def run_ends(scene: Scene) -> None:
    """Its learner stays and answers."""
    learner, _ = scene.run(total_steps=12)
    learner.until(lambda: "The run is finished" in learner.log, seconds=200)
    scene.goes_on(60)


FAILURES = {
    "healthy": Failure(make=healthy, pace=20),
    "run ends": Failure(make=run_ends),
}
