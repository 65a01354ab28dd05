"""`torchrun … -m asympo.learner -- FLAGS`: what `asympo learner FLAGS` is, once per rank.

torchrun takes some flags after the module for its own; `--` keeps them apart and is dropped here.
"""

import sys

from asympo.cli import main

if __name__ == "__main__":
    flags = sys.argv[1:]
    sys.exit(main(["learner", *(flags[1:] if flags[:1] == ["--"] else flags)]))
