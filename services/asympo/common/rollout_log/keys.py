"""Key names of one run. The literal braces put all of them in one Redis Cluster slot."""

from asympo.common.names import is_run_name

PREFIX = "asympo:"

NOUNS = {
    "config": "string",  # RunConfig as JSON, written once
    "run": "hash",  # what generators write: last sequence number, prompt cursor, counters
    "learner": "hash",  # what only the learner writes: state, limits, fence, newest policy, cursor, counters
    "log": "stream",  # one entry a group, id = "<sequence>-0"
    "payloads": "hash",  # token -> payload that its entry in the log refers to; learner's to delete
    "open": "set",  # ids of groups appended and not yet freed
    "leases": "hash",  # token -> group id, policy step, grant time, holder
    "deadlines": "zset",  # token -> expiry in milliseconds
    "resting": "hash",  # "<epoch>/<piece>" -> which prompts the epoch passes over, a bit for each
    "reissue": "list",  # ids whose lease ended without a group, granted before new ones
    "answers": "zset",  # token -> sequence it was appended under; the newest few thousand
    "failures": "hash",  # group id -> failures of the prompt itself
    "set_aside": "hash",  # group id -> why it was given up after max_prompt_failures
    "wake": "stream",  # events that may let a refused asker succeed; the newest few
    "policies": "stream",  # announcements, newest few thousand
    "policy_steps": "zset",  # step -> step of distinct announced policies
    "commit": "hash",  # the newest commit record
    "decisions": "string",  # what the run has decided about its arithmetic, as the newest learner sealed it
    "holes": "hash",  # first -> last sequence lost by the broker; of one that was purged "0" and itself
    "dead": "stream",  # records that failed validation, with reasons
    "bad_policies": "hash",  # "<fence>:<step>" -> why no generator may serve it
    "submitted": "zset",  # "<producer>/<number>" of groups without a lease; the newest few thousand
    "producers": "hash",  # "<producer>/<outcome>" -> how many groups that were submitted without a lease
    "evaluations": "stream",  # results of evaluations as JSON, the newest few thousand
    "eval_samples": "stream",  # what policies answered in evaluations as JSON, the newest few hundred
    "swaps": "hash",  # "h:<holder>" -> deadline of loading a policy; "proved" -> "<fence>:<step>"
    "presence": "hash",  # holder -> status
    "presence_until": "zset",  # holder -> when its status stops being true
}
"""Every key of a run, and its type in the broker's words."""
DELETED = "deleted"
"""A set that outlives the run: ids of those of its name that somebody has deleted."""


def key(run: str, noun: str) -> str:
    """The full key of one noun of `NOUNS`, or of `DELETED`."""
    return f"{PREFIX}{{{run}}}:{noun}"


def run_of_key(full_key: str) -> str | None:
    """The run a key belongs to, or None when it is not one of ours."""
    if not full_key.startswith(PREFIX + "{"):
        return None
    run, brace, _noun = full_key[len(PREFIX) + 1 :].partition("}:")
    return run if brace and is_run_name(run) else None
