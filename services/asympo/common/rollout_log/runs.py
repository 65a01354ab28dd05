"""What runs a broker holds."""

from asympo.common.rollout_log.connection import Broker
from asympo.common.rollout_log.records import RunSummary
from asympo.common.rollout_log.run_log import RunLog


def list_runs(broker: Broker) -> list[RunSummary]:
    """Every run of the broker, by name."""
    found = []
    for name in broker.run_names():
        log = RunLog(broker, name)
        stats, commit = log.stats.read(), log.commits.last()
        model = broker.command("HGET", log.access.key("run"), "model")
        found.append(
            RunSummary(
                run=name,
                state=stats.state,
                model=model.decode() if model else "",
                step=commit.step if commit else 0,
                backlog=stats.backlog,
                trained=stats.trained,
            )
        )
    return found
