"""Checkpoints on shared storage: manifest, atomic publish, verification."""

from asympo.common.checkpoints.manifest import FileEntry, Manifest, Probe, ProbeSequence, TensorEntry
from asympo.common.checkpoints.store import PolicyRef, PolicyStore

__all__ = ["FileEntry", "Manifest", "PolicyRef", "PolicyStore", "Probe", "ProbeSequence", "TensorEntry"]
