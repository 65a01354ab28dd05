"""`asympo checkpoint export`: a policy as a plain Hugging Face directory, proved by loading it again."""

import dataclasses
import shutil
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from asympo.common.checkpoints import Manifest, PolicyRef, PolicyStore
from asympo.common.checkpoints.digests import tensor_entries, weight_files
from asympo.common.checkpoints.names import ADAPTER_WEIGHTS, MANIFEST_NAME
from asympo.common.checkpoints.store import POLICIES
from asympo.common.checkpoints.verify import verify_files
from asympo.common.commands import add_json_flag, show, write_json
from asympo.common.errors import BadSetting, CorruptCheckpoint
from asympo.common.names import directory_of_run
from asympo.common.paths import given_path
from asympo.common.settings import read_toml
from asympo.ops.checkpoint.card import CARD_NAME, ModelCard
from asympo.ops.checkpoint.chosen import add_choice_flags, choose_policy
from asympo.ops.checkpoint.new_directory import refuse_if_there, written_beside
from asympo.ops.checkpoint.push import HubRepository
from asympo.run.directory import RunDirectory
from asympo.run.report.evals import RESULTS, read_results

if TYPE_CHECKING:
    from asympo.learner.publish.proof import Proof


def add_flags(parser: ArgumentParser) -> None:
    parser.add_argument("policy", metavar="POLICY", help="STEP, best or last")
    parser.add_argument(
        "--to", type=given_path, required=True, metavar="DIR", help="new directory to write it to"
    )
    parser.add_argument(
        "--base",
        metavar="MODEL",
        help="what the run started from, a directory or an id on the hub; none: as its settings say",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--adapter", action="store_true", help="of LoRA: the adapter alone, in PEFT's form")
    form.add_argument(
        "--merge", action="store_true", help="of LoRA: merged into the base; what is done without --adapter"
    )
    parser.add_argument(
        "--push", metavar="OWNER/NAME", help="then upload it to this new, private repository of the hub"
    )
    add_choice_flags(parser, needs_run=True)
    add_json_flag(parser)


def main(arguments: Namespace) -> int:
    """0 once the directory was loaded again, answered as the policy and differed from the run's start."""
    to = refuse_if_there(arguments.to)
    repository = HubRepository(arguments.push) if arguments.push is not None else None
    chosen = choose_policy(arguments.policy, arguments)
    ref, store = chosen.ref, chosen.store
    assert ref is not None
    assert store is not None
    base = _base_of(arguments)
    with written_beside(to) as unfinished:
        manifest = store.load_manifest(ref)
        if arguments.adapter and manifest.base is None:
            raise BadSetting(f"the policy of step {ref.step} is no adapter: leave --adapter out")
        _copy(store.path / ref.name if arguments.adapter else ref.path, unfinished, manifest)
        from asympo.learner.publish.proof import prove

        adapter_base = None
        if arguments.adapter:
            from asympo.learner.publish.peft_proof import require_that_peft_reads

            # From now on the merged policy is that of the copy.
            store.check_merge(manifest, adapter=unfinished)
            adapter_base = _base_ref(store, manifest).path
            require_that_peft_reads(unfinished, base=adapter_base, policy=ref.path)
        shown = ref.path if arguments.adapter else unfinished
        proof = prove(shown, policy=ref.path, base=base, is_start=ref.step == 0, adapter_base=adapter_base)
        card = ModelCard(
            run=arguments.run,
            manifest=manifest,
            base=base,
            is_adapter=arguments.adapter,
            proof=proof,
            evals=read_results(_results_of(arguments)),
        )
        (unfinished / CARD_NAME).write_text(card.to_markdown(), encoding="utf-8")
    message = f"Step {ref.step} of run {arguments.run}"
    pushed = repository.upload(to, message=message) if repository is not None else None
    _tell(to, ref=ref, base=base, proof=proof, pushed=pushed, as_json=arguments.json)
    return 0


def _base_ref(store: PolicyStore, manifest: Manifest) -> PolicyRef:
    """The policy that an adapter is added to."""
    digest = manifest.base.digest if manifest.base is not None else None
    found = next((each for each in store.list() if each.digest == digest), None)
    if found is None:
        raise CorruptCheckpoint(f"the base of the adapter of step {manifest.step} was deleted meanwhile")
    return found


def _tell(to: Path, *, ref: PolicyRef, base: str, proof: "Proof", pushed: str | None, as_json: bool) -> None:
    if as_json:
        values = {"path": str(to), "step": ref.step, "fence": ref.fence, "manifest_digest": ref.digest}
        write_json({**values, "base": base, **dataclasses.asdict(proof), "pushed": pushed})
        return
    show(f"{to}: the policy of step {ref.step}, loaded again")
    show(f"it answers {proof.prompts} texts as the policy does: every logit is the same")
    if proof.differ_from_base:
        show(
            f"{proof.differ_from_base} of {proof.tensors} tensors differ from {base}, logits by up to "
            f"{proof.logits_from_base:.3g}"
        )
    else:
        show(f"it equals {base}, as a policy does before the first step")
    if pushed is not None:
        show(f"pushed to {pushed}, where only you see it")


def _base_of(arguments: Namespace) -> str:
    """What the run started from, a directory that is there or an id on the hub; BadSetting."""
    model = str(arguments.base or _model_of_run(arguments))
    if model.startswith(("~", "/", ".")) and not given_path(model).is_dir():
        raise BadSetting(f"{model} is not there: name what the run started from with --base")
    return model


def _model_of_run(arguments: Namespace) -> str:
    held = RunDirectory(directory_of_run(arguments.checkpoint_root, arguments.run))
    file = held.path / "config" / "learner.toml"
    if not file.is_file():
        raise BadSetting(f"{file} is not there to say what the run started from: name that with --base")
    model = read_toml(file).get("model")
    if not isinstance(model, str):
        raise BadSetting(f"{file} names no model: name what the run started from with --base")
    beside = Path(str(held.read_mark().get("started_in", ""))) / model
    return str(beside) if beside.is_dir() else model


def _results_of(arguments: Namespace) -> Path:
    return arguments.results or directory_of_run(arguments.checkpoint_root, arguments.run) / RESULTS


def _copy(source: Path, target: Path, manifest: Manifest) -> None:
    """The policy's files, every byte of the copy checked: of a merged adapter its tensors were."""
    is_merged = manifest.base is not None and not (source / ADAPTER_WEIGHTS).exists()
    try:
        for file in source.iterdir():
            if file.name != MANIFEST_NAME:
                shutil.copyfile(file, target / file.name)
    except FileNotFoundError as error:
        raise CorruptCheckpoint(f"{source} was deleted while it was copied: it was an old one") from error
    if not is_merged:
        verify_files(target, manifest, POLICIES, with_digests=True)
    elif tensor_entries(weight_files(target)) != manifest.tensors:
        raise CorruptCheckpoint(f"the copy of {source} has other tensors than its manifest says")
