"""What each user of the broker may do: the one home of its access rules, derived from the scripts.

A command that a script calls needs the caller's own permission, so a rule admits a role's scripts by digest,
the commands in them, and keys of its run. No role may send a script of its own.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from asympo.common.errors import BadSetting
from asympo.common.names import check_run_name
from asympo.common.rollout_log.keys import NOUNS, PREFIX, key
from asympo.common.rollout_log.lua import Script, load_script, script_names

_CALLED = re.compile(r"redis\.p?call\('([A-Z]+)'")
_PLAIN_TYPES = "get hget hmget hgetall exists xread xrange xrevrange memory|usage"
_EVERYONE = ("ping", "select", "info")


@dataclass(frozen=True, kw_only=True, slots=True)
class BrokerRole:
    """One kind of user."""

    callers: tuple[str, ...]
    """Whose scripts it may run, by their folder."""
    more_scripts: tuple[str, ...] = ()
    """And these."""
    commands: tuple[str, ...]
    """Sent outside of scripts."""
    reads: tuple[str, ...] = ()
    """Keys that it reads outside of scripts."""
    adds_to: tuple[str, ...] = ()
    """Hashes into which it may put fields that are not there yet, outside of scripts, and nothing else."""
    owns: str = ""
    """Pattern of keys instead of those that its scripts name; `{run}` is one run."""

    def scripts(self) -> list[Script]:
        """Everything that it may run."""
        scripts = map(load_script, script_names())
        return [each for each in scripts if each.caller in self.callers or each.name in self.more_scripts]


_LEASES = ("acquire", "append", "hand_back", "renew")
ROLES = {
    "generator": BrokerRole(
        callers=("generator",),
        more_scripts=("list_bad_policies",),
        commands=("get", "hmget", "xread", "xrevrange"),
        reads=("config", "run", "learner", "policies", "wake"),
        adds_to=("payloads",),
    ),
    "gateway": BrokerRole(
        callers=("producer",),
        more_scripts=_LEASES,
        commands=("get", "hmget", "xread", "xrevrange"),
        reads=("config", "run", "learner", "policies", "wake"),
        adds_to=("payloads",),
    ),
    "producer": BrokerRole(
        callers=("producer",), commands=("hmget", "xread", "xrevrange"), reads=("run", "learner", "wake")
    ),
    "evaluator": BrokerRole(
        callers=("evaluator",),
        more_scripts=("list_bad_policies", "list_evaluations", "list_presence", "report_presence"),
        commands=("get", "hmget", "xread", "xrevrange", "zcount"),
        reads=("config", "run", "learner", "policies", "policy_steps", "wake"),
    ),
    "learner": BrokerRole(
        callers=("learner", "anyone"),
        commands=(*_PLAIN_TYPES.split(), "config|get", "script|load"),
        owns="{run}:*",
    ),
    "operator": BrokerRole(
        callers=("generator", "learner", "producer", "evaluator", "anyone"),
        commands=(
            *_PLAIN_TYPES.split(),
            *("scan", "config|get", "cluster|info", "slowlog|get", "client|list"),
            *("script|load", "script|kill", "function|kill"),
        ),
        owns="*",
    ),
}
"""By name, as `asympo log acl --role` takes it."""


def key_rules(role: str, run: str) -> list[str]:
    """What a role may touch of one run: keys, `~` written and read, `%R~` only read; or `(command key)`."""
    known = ROLES[role]
    if known.owns:
        return [f"~{PREFIX}{known.owns.replace('{run}', f'{{{run}}}')}"]
    scripts = known.scripts()
    written = {noun for script in scripts for noun in script.nouns}
    read = {*known.reads, *(noun for script in scripts for noun in script.reads)} - written
    rules = [
        f"{'~' if noun in written else '%R~'}{key(run, noun)}" for noun in NOUNS if noun in written | read
    ]
    # A selector: the rights to these keys are no others' of the user, nor its other rights these keys'.
    return rules + [f"(+hsetnx ~{key(run, noun)})" for noun in known.adds_to]


def command_rules(role: str) -> list[str]:
    """Nothing, and then what a role needs."""
    known = ROLES[role]
    scripts = known.scripts()
    called = {name.lower() for script in scripts for name in _CALLED.findall(script.source)}
    commands = sorted({*_EVERYONE, *known.commands, *called})
    return ["-@all", *(f"+{name}" for name in commands), *(f"+evalsha|{script.sha1}" for script in scripts)]


def acl_line(role: str, *, runs: Sequence[str], user: str, digests: Sequence[str] = ()) -> str:
    """A line of the server's ACL file; also the words after `ACL SETUSER`, behind its first one.

    `digests`: SHA-256 of each password. Without any, nobody can log in as this user.
    """
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", user):
        raise BadSetting(f"user {user!r}: give up to 64 of A-Z a-z 0-9 _ . -")
    keys = dict.fromkeys(rule for run in runs for rule in key_rules(role, check_run_name(run)))
    passwords = [f"#{digest}" for digest in digests]
    nothing = ("resetkeys", "clearselectors", "resetchannels")
    return " ".join(["user", user, "on", *passwords, *nothing, *keys, *command_rules(role)])
