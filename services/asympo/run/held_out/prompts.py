"""Renders held-out prompts once, in a process of its own: the supervisor never loads a tokenizer.

`python -m asympo.run.held_out.prompts SETTINGS OUT MAX`: SETTINGS is the learner's file, OUT gets JSON.
"""

import dataclasses
import json
import random
import sys
from pathlib import Path

from asympo.common.errors import AsympoError
from asympo.local.whole_file import write_whole


def main(argv: list[str]) -> int:
    settings_path, out, max_prompts = argv[0], Path(argv[1]), int(argv[2])
    from asympo.learner.settings import LearnerSettings
    from asympo.tasks.registry import load_task
    from asympo.tasks.render import render_prompt
    from asympo.tasks.tokenizer import open_tokenizer

    try:
        settings = LearnerSettings.load(["--config", settings_path])
        task = load_task(settings.task)
        tokenizer = open_tokenizer(settings.model)
        chosen = list(task.held_out())
        if len(chosen) > max_prompts:
            # The same ones in every evaluation of every run of this task.
            chosen = sorted(random.Random(0).sample(chosen, max_prompts), key=lambda prompt: prompt.index)
        prompts = [
            {"prompt": dataclasses.asdict(prompt), "token_ids": list(render_prompt(prompt, tokenizer))}
            for prompt in chosen
        ]
    except AsympoError as error:
        sys.stderr.write(f"asympo: {error}\n")
        return error.exit_code
    write_whole(out, json.dumps({"task_digest": task.digest, "num_prompts": len(task), "prompts": prompts}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
