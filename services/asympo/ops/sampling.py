"""A few responses of a model, sampled once: for looking, not for training."""

import asyncio
from collections.abc import Sequence

from asympo.engines.base import Sample, SamplingSettings
from asympo.engines.choice import build_engine
from asympo.engines.model_files import local_model
from asympo.generator.settings import GeneratorSettings
from asympo.learner.settings import LearnerSettings
from asympo.tasks.base import TaskPrompt
from asympo.tasks.render import render_prompt


def sample_responses(
    prompts: Sequence[TaskPrompt], *, settings: LearnerSettings, generator: GeneratorSettings
) -> list[list[Sample]]:
    """`group_size` responses to each prompt, as the run's own generators would draw them."""
    return asyncio.run(_sample(prompts, settings, generator))


async def _sample(
    prompts: Sequence[TaskPrompt], settings: LearnerSettings, generator: GeneratorSettings
) -> list[list[Sample]]:
    engine = build_engine(generator)
    sampling = SamplingSettings(**settings.sampling.model_dump())
    try:
        await engine.start(model_path=local_model(settings.model))
        return await asyncio.gather(
            *(
                engine.generate(
                    render_prompt(prompt, engine.tokenizer),
                    num_samples=settings.group_size,
                    sampling=sampling,
                    request_id=f"try-{prompt.index}",
                    cache_salt="",
                    messages=prompt.plain_messages,
                )
                for prompt in prompts
            )
        )
    finally:
        await engine.close()
