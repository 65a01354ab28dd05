"""Where a learner stands: the one home of its step, its place in the log and its fence."""

from dataclasses import dataclass


@dataclass(kw_only=True)
class Progress:
    """The training thread writes; whole numbers, so that any thread may read."""

    step: int = 0
    """Optimizer steps made."""
    sequence: int = 0
    """Last entry of the log that was consumed."""
    committed_sequence: int = 0
    """Last entry that a durable training state covers."""
    fence: int = 0
    """Number under which it owns the run; 0 before it does."""
