"""Pods and volumes of a release on the home-built node: the alerts of `rules/release.yaml`.

Their clocks are the kubelet's, so that most are played back at the pace at which they were recorded.
"""

from typing import TYPE_CHECKING

from tests.observability.failures.scene import Failure

if TYPE_CHECKING:
    from tests.cluster.home_built.release import Release

NAMESPACE = "n"
BROKER_ROOM = "300m"


def learner_finds_no_node(release: "Release") -> None:
    """It is to have a GPU, and no node has one."""
    release.goes_on(50)
    release.breaks()
    release.upgrade("learner.gpus=1")
    release.goes_on(80)


def learner_refuses_its_settings(release: "Release") -> None:
    """They are not those that its run was created with. It had ended once before, which is no loop."""
    release.goes_on(10)
    release.restart("asympo-learner-0")
    release.goes_on(60)
    release.breaks()
    release.upgrade("learner.settings.max_staleness=7")
    release.until_ended("asympo-learner-0", times=4)
    release.goes_on(70)


def model_does_not_exist(release: "Release") -> None:
    """At the revision that is given."""
    release.goes_on(30)
    release.breaks()
    release.upgrade(f"model.download.revision={'0' * 39}a")
    release.until_ended("asympo-learner-0", times=4)
    release.goes_on(70)


def log_of_the_broker_grows(release: "Release") -> None:
    """The kubelet measures volumes every one to two minutes."""
    release.goes_on(130)
    release.breaks()
    release.fill_broker(megabytes=240)
    release.goes_on(310)


FAILURES = {
    "learner finds no node": Failure(make=learner_finds_no_node, alerts={"AsympoLearnerNotReady"}),
    "learner refuses its settings": Failure(
        make=learner_refuses_its_settings, alerts={"AsympoCrashLoop"}, pace=1
    ),
    "model does not exist": Failure(make=model_does_not_exist, alerts={"AsympoCrashLoop"}, pace=1),
    "log of the broker grows": Failure(
        make=log_of_the_broker_grows, alerts={"AsympoBrokerVolumeLow"}, pace=1
    ),
}
