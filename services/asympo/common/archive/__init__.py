"""The archive of a run: every group its learner consumed, in Parquet, as a chain that training states name.

`<root>/<run>/archive/seq-<first>-<last>-f<fence>-<digest>.parquet` is a part. A learner writes it before the
training state that covers it; the state names the part (its tip), the part names the one before. So what a
dead or superseded learner left behind is in the folder and not in the archive, and nothing is overwritten.

Imports pyarrow when something is read or written, not before.
"""

from asympo.common.archive.rows import (
    ArchivedEntry,
    EntryOutcome,
    PartInfo,
    PartRef,
    ReadableGroup,
    ReadableResponse,
)
from asympo.common.archive.store import ArchiveStore, open_archive

__all__ = [
    "ArchiveStore",
    "ArchivedEntry",
    "EntryOutcome",
    "PartInfo",
    "PartRef",
    "ReadableGroup",
    "ReadableResponse",
    "open_archive",
]
