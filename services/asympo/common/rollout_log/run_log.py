"""The rollout log of one run: everything a service may do with it, by part."""

from asympo.common.rollout_log.access import RunAccess
from asympo.common.rollout_log.broker.connection import Broker
from asympo.common.rollout_log.commits import Commits
from asympo.common.rollout_log.copies import Copies
from asympo.common.rollout_log.dead_letters import DeadLetters
from asympo.common.rollout_log.decisions import DecisionCopy
from asympo.common.rollout_log.evals.evaluations import Evaluations
from asympo.common.rollout_log.fence import Fences
from asympo.common.rollout_log.leases import Leases
from asympo.common.rollout_log.order.rests import Rests
from asympo.common.rollout_log.policies import Policies
from asympo.common.rollout_log.presence import Presence
from asympo.common.rollout_log.producers.submissions import Submissions
from asympo.common.rollout_log.reader import Reader
from asympo.common.rollout_log.reconcile import Reconciler
from asympo.common.rollout_log.run_state import RunStates
from asympo.common.rollout_log.stats import Stats
from asympo.common.rollout_log.swaps import Swaps
from asympo.common.rollout_log.types import RunSummary


class RunLog:
    """`RunLog(broker, run)`. Blocking; share it between threads, call it from `asyncio.to_thread`."""

    def __init__(self, broker: Broker, run: str) -> None:
        self.access = RunAccess(broker, run)
        self.broker, self.run = broker, run
        self.state = RunStates(self.access)
        self.leases = Leases(self.access)
        self.submissions = Submissions(self.access)
        self.reader = Reader(self.access)
        self.fence = Fences(self.access)
        self.commits = Commits(self.access)
        self.reconciler = Reconciler(self.access, self.state)
        self.decisions = DecisionCopy(self.access)
        self.rests = Rests(self.access)
        self.dead_letters = DeadLetters(self.access)
        self.policies = Policies(self.access)
        self.presence = Presence(self.access)
        self.swaps = Swaps(self.access)
        self.evaluations = Evaluations(self.access)
        self.stats = Stats(self.access)
        self.copies = Copies(self.access)


def list_runs(broker: Broker) -> list[RunSummary]:
    """Every run of the broker, by name."""
    found = []
    for name in broker.run_names():
        log = RunLog(broker, name)
        stats, commit = log.stats.read(), log.commits.last()
        [model] = log.access.learner_fields("model")
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
