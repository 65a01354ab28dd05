"""Every error of the product, split by what its caller can do about it.

A message is one sentence: what was given and what would be right.
"""

from asympo.common.redaction import redact_text


class AsympoError(Exception):
    """Base of all errors that are reported to a person as one sentence, without a traceback."""

    exit_code = 1

    def __str__(self) -> str:
        # Messages quote settings and other libraries' errors, which may hold a password.
        return redact_text(super().__str__())


class BadSetting(AsympoError):
    """The person who started the process must change a setting; retrying cannot help."""

    exit_code = 2


class RunConfigMismatch(BadSetting):
    """The settings differ from those the run was created with."""


class UnknownVersion(BadSetting):
    """Another release wrote this in a form that this build does not read; use the right one of the two."""


class BrokerRefused(AsympoError):
    """The broker is too old, wrongly configured, or turns us away; retrying cannot help."""

    exit_code = 3


class BrokerUnavailable(AsympoError):
    """The broker does not answer; the caller may retry with backoff."""

    exit_code = 4


class BrokerFull(BrokerUnavailable):
    """The broker refuses writes for lack of memory; retry after the learner has freed some."""


class BrokerChanged(AsympoError):
    """The broker restarted, failed over or lost state; reconcile, then go on."""


class InvalidRecord(AsympoError):
    """A record from the wire breaks the schema; dead-letter it with this reason and go on."""


class SequenceGap(AsympoError):
    """The log lacks an entry below its newest one; stop, never skip."""

    exit_code = 5


class Fenced(AsympoError):
    """Another learner owns the run; exit and do not restart."""

    exit_code = 6


class RunHasLearner(Fenced):
    """A live learner holds the run; wait for its heartbeat to expire or take over on purpose."""


class RunEnded(AsympoError):
    """The run is finished or failed; there is no work."""

    exit_code = 0


class CorruptCheckpoint(AsympoError):
    """Files on storage do not match their manifest; use another checkpoint."""


class CorruptArchive(AsympoError):
    """A part of an archive is missing or not what was written; restore it, or do without."""


class ReplayDiverged(AsympoError):
    """The archive's groups make other steps here than they made in the run; the message says where."""


class PublishFailed(AsympoError):
    """A checkpoint could not be made visible (disk full, storage gone); retry on a timer."""


class StorageUnavailable(AsympoError):
    """Checkpoint storage does not answer and nothing can start without it; the caller may start again."""

    exit_code = 9


class PolicyRejected(AsympoError):
    """No generator may serve the newest policy, which the run needs; start again to publish it anew."""


class EngineBroken(AsympoError):
    """The engine cannot be trusted with another request; exit and let the orchestrator restart."""

    exit_code = 7


class ReloadFailed(EngineBroken):
    """No proven policy could be loaded; exit non-zero."""


class PromptRefused(AsympoError):
    """The engine cannot serve these token ids (too long, outside the vocabulary); it is fine itself."""


class EngineUnavailable(AsympoError):
    """The server that is the engine does not answer; the caller may ask again later."""


class BadModel(BadSetting):
    """The model or its tokenizer cannot be loaded."""


class StepTooLarge(AsympoError):
    """A step does not fit into memory however small its rows, or its optimizer does not."""


class NoProgress(AsympoError):
    """A wait outlasted its limit."""

    exit_code = 8
