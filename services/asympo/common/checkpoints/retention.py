"""Which policies may be deleted."""

from collections.abc import Callable, Sequence

from asympo.common.checkpoints.manifest import Manifest


def deletable(
    manifests: Sequence[Manifest], *, keep: int, is_in_use: Callable[[Manifest], bool]
) -> list[Manifest]:
    """Those of `manifests` (sorted, the newest last) that nothing needs.

    Needed are the `keep` newest, those in use, and every ancestor a needed delta is built upon.
    """
    if keep < 1:
        raise ValueError("keep must be at least 1")
    by_digest = {manifest.digest: manifest for manifest in manifests}
    needed = {manifest.digest for manifest in manifests[-keep:]}
    needed |= {manifest.digest for manifest in manifests if is_in_use(manifest)}
    pending = list(needed)
    while pending:
        manifest = by_digest.get(pending.pop())
        if manifest is None or manifest.kind == "full" or manifest.parent is None:
            continue
        if manifest.parent not in needed:
            needed.add(manifest.parent)
            pending.append(manifest.parent)
    return [manifest for manifest in manifests if manifest.digest not in needed]
