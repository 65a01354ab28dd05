"""`asympo checkpoint list|verify|best|diff|export|import`: policies of a run, and what one starts from."""

import logging
from argparse import ArgumentParser
from collections.abc import Sequence

from asympo.common.commands import CommandParser
from asympo.ops.access import add_checkpoint_flags
from asympo.ops.checkpoint import adapter_import, diff, export, listing
from asympo.ops.checkpoint.chosen import add_eval_flags

_LISTING = {
    "list": (listing.list_policies, "published policies; sizes are checked, contents are not"),
    "verify": (
        listing.verify,
        "read every byte and compare it with the manifest; "
        "what is read of an object store, and what is shared as differences, takes room in TMPDIR",
    ),
    "best": (listing.best, "the policy that an evaluation likes best"),
}
_OTHERS = {
    "diff": (diff, "which tensors differ between two policies or models, and by how much"),
    "export": (export, "write a policy as a plain Hugging Face directory, and prove it by loading it"),
    "import": (adapter_import, "merge a PEFT adapter into its base, as a model that a run starts from"),
}


def main(argv: Sequence[str]) -> int:
    parser = CommandParser(prog="asympo checkpoint", description="The policies that a run has published.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, (_, text) in _LISTING.items():
        _add_listing_flags(name, verbs.add_parser(name, help=text, description=text))
    for name, (module, text) in _OTHERS.items():
        module.add_flags(verbs.add_parser(name, help=text, description=text))
    arguments = parser.parse_args(argv)
    # What does not verify is part of the answer here, not a line of the log.
    logging.getLogger("asympo").setLevel(logging.ERROR)
    if arguments.verb in _OTHERS:
        return _OTHERS[arguments.verb][0].main(arguments)
    return _LISTING[arguments.verb][0](arguments)


def _add_listing_flags(name: str, verb: ArgumentParser) -> None:
    verb.add_argument("--run", required=True, metavar="RUN")
    add_checkpoint_flags(verb)
    verb.add_argument("--json", action="store_true", help="print one JSON object per line and nothing else")
    if name == "verify":
        verb.add_argument("--step", type=int, help="only the policies of this step")
    if name == "best":
        add_eval_flags(verb)
