"""`torchrun … -m asympo.learner`: the same as `asympo learner`, once per rank."""

import sys

from asympo.cli import main

if __name__ == "__main__":
    sys.exit(main(["learner", *sys.argv[1:]]))
