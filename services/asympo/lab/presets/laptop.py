"""Two cores, under ten minutes for the first grid. Sizes came from the warm-up and `naive` at K = 0 alone."""

from dataclasses import replace

from asympo.lab.presets.plan import Grid, Preset, TaskSettings, Tuning, WarmUp

_SEEDS = (0, 1, 2)
_CONFIRMING_SEEDS = (10, 11, 12, 13, 14)
_LEARNING_RATES = (1e-4, 3e-4, 6e-4)
_STEPS = 150
_HEADLINE_ARMS = ("asympo", "spo", "naive", "gpg", "grpo", "tis")
_CANDIDATES = (
    *("asympo-floor", "asympo-bound", "asympo-fade"),
    *("norm-scaled", "positives", "norm-positives-only"),
)

_SHORT = TaskSettings(
    num_digits=3, num_held_out=512, hidden_size=64, num_layers=2, num_heads=2, token_budget=4096
)

LAPTOP = Preset(
    name="laptop",
    summary="a transformer of 84,000 parameters adds two numbers of three digits, digit by digit",
    tasks={"short": _SHORT, "long": replace(_SHORT, num_digits=6)},
    warm_up=WarmUp(
        seed=0, batch=128, learning_rate=2e-3, ramp_steps=50, max_steps=3000, target=0.25, ceiling=0.40
    ),
    groups_per_step=16,
    group_size=8,
    evaluate_every=50,
    tuning=Tuning(staleness=64, learning_rates=_LEARNING_RATES, seed=9, steps=_STEPS),
    confirming_seeds=_CONFIRMING_SEEDS,
    grids=(
        Grid(
            name="headline",
            question="Which arms keep learning on stale data, and at which learning rates?",
            arms=_HEADLINE_ARMS,
            staleness=(0, 16, 64),
            learning_rates=_LEARNING_RATES,
            seeds=_SEEDS,
            steps=_STEPS,
        ),
        Grid(
            name="sides",
            question="Which side of the normalisation does the work, and is it a fixed scale in disguise?",
            arms=("norm-positives", "norm-negatives", "spo-0.2", "spo-0.45", "asympo"),
            staleness=(0, 64),
            learning_rates=_LEARNING_RATES,
            seeds=_SEEDS,
            steps=_STEPS,
            constants="first",
        ),
        Grid(
            name="moonshot",
            question="Is the best synchronous accuracy reached at K = 64 without behaviour log-probs?",
            arms=_CANDIDATES,
            staleness=(64,),
            learning_rates=(*_LEARNING_RATES, 1e-3),
            seeds=_SEEDS,
            steps=_STEPS,
            constants="both",
        ),
        Grid(
            name="confirm-sync",
            question="The synchronous best again, on fresh seeds.",
            arms=_HEADLINE_ARMS,
            staleness=(0,),
            learning_rates=(3e-4,),
            seeds=_CONFIRMING_SEEDS,
            steps=_STEPS,
        ),
        Grid(
            name="confirm-stale",
            question="What reached the synchronous best at K = 64, on the same fresh seeds.",
            arms=(),
            staleness=(64,),
            learning_rates=(),
            seeds=_CONFIRMING_SEEDS,
            steps=_STEPS,
            constants="passed",
        ),
        Grid(
            name="ages",
            question="Does it matter how ages are spread around their mean?",
            arms=_HEADLINE_ARMS,
            staleness=(16,),
            learning_rates=(3e-4,),
            seeds=_SEEDS,
            steps=_STEPS,
            kinds=("fixed", "uniform", "long-tailed"),
        ),
        Grid(
            name="switches",
            question="Token sums, division by the deviation, dropped groups, clip norm.",
            arms=("asympo-token-sum", "naive-token-sum", "asympo-std", "asympo-drop", "asympo-clip"),
            staleness=(0, 64),
            learning_rates=(1e-4, 3e-4),
            seeds=_SEEDS,
            steps=_STEPS,
            constants="both",
        ),
        Grid(
            name="bfloat16",
            question="What changes when matrix products are in bfloat16?",
            arms=("asympo", "naive"),
            staleness=(0, 64),
            learning_rates=(3e-4,),
            seeds=_SEEDS,
            steps=_STEPS,
            constants="first",
            compute_dtypes=("float32", "bfloat16"),
        ),
        Grid(
            name="sgd",
            question="What changes without AdamW's normalisation?",
            arms=("asympo", "spo", "naive"),
            staleness=(0, 64),
            learning_rates=(0.03, 0.1, 0.3),
            seeds=_SEEDS,
            steps=_STEPS,
            constants="first",
            optimizers=("sgd",),
        ),
        Grid(
            name="long",
            question="What changes when responses are almost twice as long?",
            arms=("asympo", "spo", "spo-0.1", "naive", "grpo"),
            staleness=(0, 64),
            learning_rates=_LEARNING_RATES,
            seeds=_SEEDS,
            steps=_STEPS,
            constants="first",
            task="long",
        ),
    ),
)

PRODUCTS = replace(
    LAPTOP,
    name="products",
    tuning=None,
    confirming_seeds=(),
    grids=(
        Grid(
            name="products",
            question="Does staleness times learning rate decide where a run collapses?",
            arms=("naive", "asympo"),
            staleness=(1, 2, 4, 8, 16, 32, 64),
            learning_rates=(3e-5, *_LEARNING_RATES, 1e-3),
            seeds=_SEEDS,
            steps=_STEPS,
            constants="first",
        ),
    ),
)
