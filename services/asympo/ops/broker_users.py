"""`asympo log acl`: the access rules of a broker's user, as a line of the server's ACL file."""

import argparse
import hashlib
import sys
from argparse import Namespace

from asympo.common.commands import say
from asympo.common.paths import given_path
from asympo.common.rollout_log.broker.client import read_password
from asympo.common.rollout_log.broker.users import ROLES, acl_line

_DEFAULT_USER = (
    "The default user may be off, but needs its rights: user default off allkeys allchannels +@all. After a "
    "restart Redis 7.0 reads its own log back with them, and without them drops what scripts wrote."
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.add_argument(
        "--run", required=True, action="append", metavar="RUN", help="may be given several times"
    )
    parser.add_argument("--role", required=True, choices=sorted(ROLES))
    parser.add_argument("--user", metavar="NAME", help="default: the name of the role")
    parser.add_argument(
        "--password-file",
        type=given_path,
        metavar="FILE",
        help="file with the password, of which a digest is printed; without it, nobody can log in",
    )


def main(arguments: Namespace) -> int:
    """Needs no broker."""
    user, file = arguments.user or arguments.role, arguments.password_file
    digests = []
    if file is not None:
        digests.append(hashlib.sha256(read_password("--password-file", file).encode()).hexdigest())
    sys.stdout.write(acl_line(arguments.role, runs=arguments.run, user=user, digests=digests) + "\n")
    # Not on standard output: the server takes no comment in its ACL file.
    say(_DEFAULT_USER)
    return 0
