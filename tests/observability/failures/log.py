"""Broker, leases and records: the alerts of asympo-log."""

from asympo.common.rollout_log import Broker, Lease, RunLog

from tests.observability.failures.scene import QUICK, RUN, Failure, Scene


def broker_stops(scene: Scene) -> None:
    scene.run()
    scene.broker.kill()
    scene.goes_on(25)
    scene.broker.start()
    scene.goes_on(10)


def broker_is_changed(scene: Scene) -> None:
    """By somebody who did not know what it is for."""
    scene.run()
    scene.ask_broker("CONFIG", "SET", "appendfsync", "everysec")
    scene.goes_on(30)


def generators_die(scene: Scene) -> None:
    """Again and again, with the groups they hold."""
    learner = scene.learner(lease_seconds=2.0)
    slow = {"seconds_per_token": 0.05}
    generators = [scene.generator(simulated=slow), scene.generator(simulated=slow)]
    scene.train(learner)
    for _ in range(8):
        generators[0].kill()
        generators[0].start()
        scene.goes_on(7)


def broker_is_small(scene: Scene) -> None:
    """Others have written as much as it may hold."""
    scene.run()
    for number in range(50):
        scene.ask_broker("SETRANGE", f"other:{number}", "1000000", "x")
    used = scene.ask_broker("INFO", "memory")["used_memory"]
    scene.ask_broker("CONFIG", "SET", "maxmemory", str(int(1.15 * used)))
    scene.goes_on(40)


def somebody_writes_garbage(scene: Scene) -> None:
    """A program of a stranger's takes leases and answers with what is no record."""
    scene.run()
    broker = Broker.connect(scene.broker.url)
    leases = RunLog(broker, RUN).leases
    for _ in range(10):
        lease = leases.acquire(holder="stranger", policy_step=1000)
        if isinstance(lease, Lease):
            leases.append(lease, b"no record", producer="stranger")
        scene.goes_on(2)
    broker.close()


def answers_come_too_late(scene: Scene) -> None:
    """One generator of two is so slow that its groups are older than the run takes."""
    learner = scene.learner(max_staleness=3, max_generation_staleness=1)
    scene.generator(simulated=QUICK)
    scene.generator(simulated={"seconds_per_token": 0.1}, max_groups_in_flight=16)
    scene.train(learner)
    scene.goes_on(45)


FAILURES = {
    "broker stops": Failure(make=broker_stops, alerts={"AsympoBrokerDown", "AsympoBrokerErrors"}),
    "broker is changed": Failure(make=broker_is_changed, alerts={"AsympoBrokerNotDurable"}),
    "generators die": Failure(make=generators_die, alerts={"AsympoLearnerStarved", "AsympoLeaseExpiries"}),
    "broker is small": Failure(make=broker_is_small, alerts={"AsympoBrokerMemory"}),
    "somebody writes garbage": Failure(make=somebody_writes_garbage, alerts={"AsympoDeadLetters"}),
    "answers come too late": Failure(make=answers_come_too_late, alerts={"AsympoWastedGroups"}),
}
