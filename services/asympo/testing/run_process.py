"""`asympo run` as a person starts it."""

import sys
from pathlib import Path

import psutil

from asympo.local.process import Process


class RunProcess(Process):
    """One run in a process of its own, with a broker of its own."""

    def __init__(self, config: Path, *flags: str, log_path: Path) -> None:
        command = [sys.executable, "-m", "asympo.cli", "run", str(config), "--view.kind=plain", *flags]
        super().__init__(command=command, log_path=log_path, environment={"REDIS_URL": ""})

    def services(self, name: str) -> list[psutil.Process]:
        """The running processes of services whose settings files have this in their names."""
        children = [(child, _words(child)) for child in psutil.Process(self.pid).children()]
        return [
            child
            for child, words in children
            if "asympo.cli" in words and any(name in word for word in words)
        ]


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:  # it has ended meanwhile
        return []
