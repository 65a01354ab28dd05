"""A study of seconds: one-digit addition and a network of one layer."""

from asympo.lab.presets.plan import Grid, Preset, TaskSettings, Tuning, WarmUp

TASK = TaskSettings(
    num_digits=1, num_held_out=20, hidden_size=32, num_layers=1, num_heads=2, token_budget=4096
)
TINY = Preset(
    name="tiny",
    summary="a test",
    tasks={"short": TASK},
    warm_up=WarmUp(
        seed=0, batch=32, learning_rate=1e-2, ramp_steps=5, max_steps=400, target=0.2, ceiling=1.0
    ),
    groups_per_step=4,
    group_size=4,
    evaluate_every=2,
    tuning=Tuning(staleness=2, learning_rates=(1e-3,), seed=9, steps=3),
    grids=(
        Grid(
            name="headline",
            question="Which arms keep learning?",
            arms=("asympo", "grpo"),
            staleness=(0, 2),
            learning_rates=(1e-3,),
            seeds=(0, 1),
            steps=4,
        ),
        Grid(
            name="other",
            question="What else?",
            arms=("asympo-token-sum", "asympo-std", "tis"),
            staleness=(2,),
            learning_rates=(1e-3,),
            seeds=(0,),
            steps=4,
            constants="first",
            kinds=("uniform",),
        ),
    ),
)
