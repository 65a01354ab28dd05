"""The dashboard of the policy and of the learner."""

from panels import Board, Panel, gauge, quantiles, query, rate, ratio

TRAINING = Board(
    name="training",
    title="ASymPO / Training",
    description="Is the policy getting better, and is it about to break?",
    rows=(
        (
            "Is it learning?",
            (
                Panel(
                    title="Reward",
                    description="Mean reward of the newest step.",
                    queries=(gauge("asympo_learner_reward", "{{run}}"),),
                    alerts=("AsympoCollapse",),
                ),
                Panel(
                    title="Spread of rewards inside groups",
                    description="Mean of their standard deviations. At 0 nothing is learned.",
                    queries=(gauge("asympo_learner_reward_spread", "{{run}}"),),
                    min=0,
                ),
                Panel(
                    title="Reward functions",
                    description="Mean of each function's values, before its weight. Empty with one reward.",
                    queries=(
                        query("max by (run, function) (asympo_learner_reward_function{$s})", "{{function}}"),
                    ),
                ),
                Panel(
                    title="Spread of reward functions inside groups",
                    description="At 0 a function ranks nothing: all responses to a prompt earn the same.",
                    queries=(
                        query(
                            "max by (run, function) (asympo_learner_reward_function_spread{$s})",
                            "{{function}}",
                        ),
                    ),
                    min=0,
                ),
                Panel(
                    title="NLL by sign of the advantage",
                    description="Rising NLL of rewarded responses while reward falls is the early "
                    "warning of a collapse. The loss itself is about 0 by construction and says nothing.",
                    queries=(query("max by (run, sign) (asympo_learner_nll_nats{$s})", "{{sign}}"),),
                    alerts=("AsympoNllRising",),
                ),
                Panel(
                    title="Negative over positive NLL",
                    description="How much less likely punished responses are than rewarded ones.",
                    queries=(gauge("asympo_learner_nll_ratio", "{{run}}"),),
                    min=0,
                ),
                Panel(
                    title="Gradient norm",
                    description="Before clipping. That of asympo is several times larger than that of naive.",
                    queries=(gauge("asympo_learner_gradient_norm", "{{run}}"),),
                    min=0,
                ),
                Panel(
                    title="Entropy",
                    description="Of the next token, in nats. Near zero nothing new is sampled any more.",
                    queries=(gauge("asympo_learner_entropy_nats", "{{run}}"),),
                    min=0,
                ),
                Panel(
                    title="Loss",
                    description="About 0 under asympo, whatever happens; for the other objectives only.",
                    queries=(gauge("asympo_learner_loss", "{{run}}"),),
                ),
            ),
        ),
        (
            "Is it better on what it was not trained on?",
            (
                Panel(
                    title="Mean reward of an evaluation",
                    description="Of the newest policy measured, with the ends of its 95 % interval.",
                    queries=tuple(
                        query(
                            f"max by (run, eval) (asympo_evaluator_mean_reward{suffix}{{$s}})",
                            f"{{{{eval}}}}{legend}",
                        )
                        for suffix, legend in (("", ""), ("_low", ", low"), ("_high", ", high"))
                    ),
                ),
                Panel(
                    title="pass@k",
                    description="Chance that one of k responses is right.",
                    queries=(
                        query(
                            "max by (run, eval, k) (asympo_evaluator_pass_at_k{$s})", "{{eval}}, pass@{{k}}"
                        ),
                    ),
                    unit="percentunit",
                    min=0,
                    max=1,
                ),
                Panel(
                    title="Reward functions of an evaluation",
                    description="Mean of each function's values.",
                    queries=(
                        query(
                            "max by (run, eval, function) (asympo_evaluator_function_mean{$s})",
                            "{{eval}}, {{function}}",
                        ),
                    ),
                ),
                Panel(
                    title="Policy measured",
                    description="Step of the policy of the newest result.",
                    queries=(
                        query("max by (run, eval) (asympo_evaluator_policy_step{$s})", "{{eval}}"),
                        gauge("asympo_learner_step", "learner"),
                    ),
                    min=0,
                ),
                Panel(
                    title="Duration of an evaluation",
                    description="If it is longer than `every` steps take, some policies are left out.",
                    queries=(query("max by (run, eval) (asympo_evaluator_seconds{$s})", "{{eval}}"),),
                    unit="s",
                    min=0,
                ),
                Panel(
                    title="Evaluations that failed, responses without a score",
                    description="A failed one is tried again with the next policy.",
                    queries=(
                        rate("asympo_evaluator_failures_total", "{{eval}} failed", "eval"),
                        rate("asympo_evaluator_unscored_total", "{{eval}} without a score", "eval"),
                        rate("asympo_evaluator_evaluations_total", "{{eval}} done", "eval"),
                        rate("asympo_evaluator_broker_errors_total", "broker"),
                    ),
                    unit="cps",
                    min=0,
                ),
            ),
        ),
        (
            "What is it fed?",
            (
                Panel(
                    title="Groups consumed",
                    description="Groups without signal have equal rewards and are counted, not trained. "
                    "Invalid ones lie in the dead letters.",
                    queries=(rate("asympo_learner_groups_total", "{{kind}}", "kind"),),
                    unit="cps",
                    is_stacked=True,
                ),
                Panel(
                    title="Response length",
                    description="Mean tokens of a response in the newest step.",
                    queries=(gauge("asympo_learner_response_tokens", "{{run}}"),),
                    min=0,
                ),
                Panel(
                    title="Truncated responses",
                    description="Share that was cut at max_tokens.",
                    queries=(gauge("asympo_learner_truncated_ratio", "{{run}}"),),
                    unit="percentunit",
                    min=0,
                    max=1,
                    alerts=("AsympoTruncated",),
                ),
                Panel(
                    title="Staleness",
                    description="Policies published between append and training, and from lease to append.",
                    queries=(
                        gauge("asympo_learner_queue_staleness_policies", "in the queue"),
                        gauge("asympo_learner_generation_staleness_policies", "while generated"),
                    ),
                    min=0,
                ),
                Panel(
                    title="Segments without signal, in a row",
                    description="The task is too easy, too hard, or scored wrongly.",
                    queries=(gauge("asympo_learner_empty_segments_in_a_row", "{{run}}"),),
                    min=0,
                    alerts=("AsympoNoSignal",),
                ),
                Panel(
                    title="Learning rate",
                    description="As applied in the newest step.",
                    queries=(gauge("asympo_learner_learning_rate", "{{run}}"),),
                    min=0,
                ),
            ),
        ),
        (
            "Where does the time go?",
            (
                Panel(
                    title="Time of the learner",
                    description="Share of each second. Waiting means that generators or slots are short. "
                    "Publishing goes on beside it.",
                    queries=(
                        rate("asympo_learner_step_seconds_sum", "train"),
                        rate("asympo_learner_save_seconds_sum", "save"),
                        rate("asympo_learner_waited_seconds_total", "wait"),
                    ),
                    unit="percentunit",
                    is_stacked=True,
                ),
                Panel(
                    title="Steps",
                    description="Optimizer steps of the run.",
                    queries=(gauge("asympo_learner_step", "{{run}}"),),
                    min=0,
                ),
                Panel(
                    title="Progress",
                    description="Share of the run's steps that are done. Empty for a run without an end.",
                    queries=(
                        query(
                            "max by (run) (asympo_learner_step{$s})"
                            " / max by (run) (asympo_learner_total_steps{$s} > 0)",
                            "{{run}}",
                        ),
                    ),
                    unit="percentunit",
                    min=0,
                    max=1,
                ),
                Panel(
                    title="Time left",
                    description="At the pace of the last half hour.",
                    queries=(
                        query(
                            "(max by (run) (asympo_learner_total_steps{$s} > 0)"
                            " - max by (run) (asympo_learner_step{$s}))"
                            " / (sum by (run) (rate(asympo_learner_steps_total{$s}[30m])) > 0)",
                            "{{run}}",
                        ),
                    ),
                    unit="s",
                    min=0,
                ),
                Panel(
                    title="Trained tokens a second",
                    description="Response tokens, waits included.",
                    queries=(rate("asympo_learner_trained_tokens_total", "{{run}}"),),
                    min=0,
                ),
                Panel(
                    title="Model FLOP/s",
                    description="Operations that forward and backward passes need, attention counted "
                    "causally, over the time of the newest step.",
                    queries=(gauge("asympo_learner_model_flops_per_second", "{{run}}"),),
                    unit="flops",
                    min=0,
                ),
                Panel(
                    title="Model FLOP utilisation (MFU)",
                    description="The same over its GPUs' peak. Empty where that is unknown, as on CPUs.",
                    queries=(query("max by (run) (asympo_learner_mfu_ratio{$s} > 0)", "{{run}}"),),
                    unit="percentunit",
                    min=0,
                    max=1,
                ),
                Panel(
                    title="Computed over trained tokens",
                    description="Tokens that went through the model for each response token trained; shared "
                    "prefixes are computed once.",
                    queries=(
                        ratio(
                            "asympo_learner_computed_tokens_total",
                            "asympo_learner_trained_tokens_total",
                            "{{run}}",
                        ),
                    ),
                    min=0,
                ),
                Panel(
                    title="Tokens of a row",
                    description="The most that are computed at once. Fewer once memory ran out.",
                    queries=(gauge("asympo_learner_row_tokens", "{{run}}"),),
                    min=0,
                ),
                Panel(
                    title="Way of computing",
                    description="Slower where the fastest one was found to be wrong for this model.",
                    queries=(gauge("asympo_learner_slow_path", "{{run}}"),),
                    is_number=True,
                    words=((0, "fastest"), (1, "slower")),
                ),
                Panel(
                    title="Publishing a policy",
                    description="Beside training, until generators can load it. Longer than publish_every "
                    "steps take, it holds up training.",
                    queries=quantiles("asympo_learner_publish_seconds"),
                    unit="s",
                    min=0,
                ),
                Panel(
                    title="Age of policy and saved state",
                    description="What generators serve, and what a restart would go back to.",
                    queries=(
                        query(
                            "time() - max by (run) (asympo_learner_last_publish_timestamp_seconds{$s} > 0)",
                            "policy",
                        ),
                        query(
                            "time() - max by (run) (asympo_learner_last_commit_timestamp_seconds{$s} > 0)",
                            "state",
                        ),
                    ),
                    unit="s",
                    min=0,
                    alerts=("AsympoPolicyOld", "AsympoStateOld"),
                ),
                Panel(
                    title="Failed publishes, saves and steps",
                    description="A second.",
                    queries=(
                        rate("asympo_learner_publish_failures_total", "publish"),
                        rate("asympo_learner_save_failures_total", "save"),
                        rate("asympo_learner_skipped_steps_total", "gradient not finite"),
                        rate("asympo_learner_spans_lost_total", "spans of traces"),
                    ),
                    unit="cps",
                    min=0,
                    alerts=("AsympoPublishFailing", "AsympoSaveFailing", "AsympoGradientsNotFinite"),
                ),
            ),
        ),
    ),
)
