"""The demo's model and task: hours on a CPU, minutes on a GPU."""

from asympo.lab.presets.plan import Grid, Preset

SMOLLM = Preset(
    name="smollm",
    summary="SmolLM2-135M-Instruct adds two numbers in words, as in the demo",
    tasks={},
    warm_up=None,
    groups_per_step=8,
    group_size=8,
    evaluate_every=16,
    tuning=None,
    grids=(
        Grid(
            name="headline",
            question="Which arms keep learning on stale data, and at which learning rates?",
            arms=("asympo", "spo", "naive", "gpg", "grpo", "tis"),
            staleness=(0, 8, 32),
            learning_rates=(1e-5, 3e-5, 1e-4),
            seeds=(0, 1),
            steps=48,
            constants="first",
        ),
        Grid(
            name="stale",
            question="Which arms keep learning on responses that are eight steps old, at one learning rate?",
            arms=("asympo", "spo", "spo-0.1", "naive", "gpg", "grpo", "tis"),
            staleness=(8,),
            learning_rates=(3e-5,),
            seeds=(0, 1),
            steps=32,
            constants="first",
        ),
        Grid(
            name="small",
            question="The same at one learning rate: what fits into an evening on two cores.",
            arms=("asympo", "naive"),
            staleness=(0, 8),
            learning_rates=(3e-5,),
            seeds=(0,),
            steps=32,
            constants="first",
        ),
    ),
)
