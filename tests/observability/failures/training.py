"""What is learnt from: the alerts of asympo-training."""

import time

from tests.observability.failures.scene import QUICK, Failure, Scene


def scoring_fails(scene: Scene) -> None:
    learner = scene.learner(task=scene.reward("return 1 / (len(response_text) % 5)"))
    for _ in range(2):
        scene.generator(allow_python=True)
    scene.train(learner)
    scene.goes_on(50)


def all_earn_the_same(scene: Scene) -> None:
    scene.learner(task=scene.reward("return 1.0"))
    generator = scene.generator(allow_python=True)
    generator.until(lambda: "No work for now: no_capacity" in generator.log, seconds=200)
    scene.begun = time.time()
    scene.goes_on(30)


def responses_are_cut(scene: Scene) -> None:
    scene.run(simulated={}, publish_every=1, sampling={"max_tokens": 8})
    scene.goes_on(60)


def weights_overflow(scene: Scene) -> None:
    """The first step makes them so large that nothing can be computed with them."""
    learner = scene.learner(publish_every=4, learning_rate=1e20)
    for _ in range(2):
        scene.generator(simulated=QUICK)
    scene.train(learner)
    scene.goes_on(30)


FAILURES = {
    "scoring fails": Failure(
        make=scoring_fails, alerts={"AsympoLearnerStarved", "AsympoPromptFailures", "AsympoRewardsFailing"}
    ),
    "all earn the same": Failure(make=all_earn_the_same, alerts={"AsympoLearnerStarved", "AsympoNoSignal"}),
    "responses are cut": Failure(make=responses_are_cut, alerts={"AsympoLearnerStarved", "AsympoTruncated"}),
    "weights overflow": Failure(make=weights_overflow, alerts={"AsympoGradientsNotFinite"}),
}
