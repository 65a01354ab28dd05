"""The dashboard of the generators."""

from panels import Board, Panel, gauge, quantile, quantiles, query, rate

EACH = "{{pod}} {{instance}}"
"""Of a generator: the pod where there is one."""

FLEET = Board(
    name="fleet",
    title="ASymPO / Fleet",
    description="Are there enough generators, do they work, and do they serve the newest policy?",
    rows=(
        (
            "Enough generators?",
            (
                Panel(
                    title="Generators",
                    description="Wanted is what the autoscaler reads; max is what capacity can lease to.",
                    queries=tuple(
                        query(f"sum by (run) (asympo:generators_{noun}{{$s}})", noun)
                        for noun in ("ready", "busy", "wanted", "max")
                    ),
                    min=0,
                ),
                Panel(
                    title="Who waits for whom",
                    description="Learner waits and slots are free: more generators. Learner waits and no "
                    "slot is free: raise max_staleness. Nobody waits and no slot is free: fewer would do.",
                    queries=(
                        query("max by (run) (asympo:learner_waiting:ratio10m{$s})", "learner waits"),
                        query("max by (run) (asympo:slots_free:ratio10m{$s})", "slots free"),
                    ),
                    unit="percentunit",
                    min=0,
                    max=1,
                ),
                Panel(
                    title="Waiting for a lease",
                    description="From wanting a lease to having it.",
                    queries=quantiles("asympo_generator_lease_wait_seconds"),
                    unit="s",
                    min=0,
                ),
            ),
        ),
        (
            "Do they work?",
            (
                Panel(
                    title="Tokens a second",
                    description="Sampled by each generator.",
                    queries=(rate("asympo_generator_tokens_total", EACH, "pod, instance"),),
                    is_stacked=True,
                    min=0,
                ),
                Panel(
                    title="Groups by how they ended",
                    description="Only appended ones are trained on.",
                    queries=(rate("asympo_generator_groups_total", "{{outcome}}", "outcome"),),
                    unit="cps",
                    is_stacked=True,
                ),
                Panel(
                    title="Groups in flight",
                    description="Leases that each generator holds.",
                    queries=(
                        query(
                            "sum by (run, pod, instance) (asympo_generator_groups_in_flight{$s})",
                            EACH,
                        ),
                    ),
                    is_stacked=True,
                    min=0,
                ),
                Panel(
                    title="Sampling a group",
                    description="All responses of one prompt.",
                    queries=quantiles("asympo_generator_generation_seconds"),
                    unit="s",
                    min=0,
                ),
                Panel(
                    title="Scoring a group",
                    description="All responses of one prompt.",
                    queries=quantiles("asympo_generator_score_seconds"),
                    unit="s",
                    min=0,
                ),
                Panel(
                    title="Responses by how they ended",
                    description="length: cut at max_tokens. abort: lost, never trained.",
                    queries=(rate("asympo_generator_responses_total", "{{finish_reason}}", "finish_reason"),),
                    unit="cps",
                    is_stacked=True,
                ),
                Panel(
                    title="Failures",
                    description="A second, of all generators.",
                    queries=tuple(
                        rate(f"asympo_generator_{noun}_total", legend)
                        for noun, legend in (
                            ("reward_failures", "scoring"),
                            ("engine_failures", "engine"),
                            ("broker_errors", "broker"),
                            ("leases_lost", "leases lost"),
                            ("spans_lost", "spans of traces"),
                            ("unexpected_errors", "unexpected"),
                        )
                    ),
                    unit="cps",
                    min=0,
                ),
            ),
        ),
        (
            "Do they serve the newest policy?",
            (
                Panel(
                    title="Policy served",
                    description="Step of the policy of each generator.",
                    queries=(
                        query(
                            "max by (run, pod, instance) (asympo_generator_policy_step{$s})",
                            EACH,
                        ),
                        gauge("asympo_learner_step", "learner"),
                    ),
                ),
                Panel(
                    title="Reloads by verdict",
                    description="proved: every layer holds the new policy. unchanged: it equals the old one. "
                    "unproven: some layers cannot be read back. failed: the engine serves something else.",
                    queries=(rate("asympo_generator_reloads_total", "{{verdict}}", "verdict"),),
                    unit="cps",
                    is_stacked=True,
                ),
                Panel(
                    title="Reload, and the pause in it",
                    description="95 % are quicker. Nothing is sampled during the pause.",
                    queries=(
                        quantile(0.95, "asympo_generator_reload_seconds", "reload with its verdict"),
                        quantile(0.95, "asympo_generator_reload_pause_seconds", "pause"),
                        quantile(0.95, "asympo_generator_reload_load_seconds", "loading weights"),
                        quantile(0.95, "asympo_generator_reload_readback_seconds", "reading weights back"),
                    ),
                    unit="s",
                    min=0,
                ),
                Panel(
                    title="Probe error",
                    description="Distance to the learner's mean NLL in nats per token, and its noise.",
                    queries=(
                        query(
                            "max by (run, pod, instance) (asympo_generator_probe_error_nats{$s})",
                            EACH,
                        ),
                        query(
                            "max by (run, pod, instance) (asympo_generator_probe_noise_nats{$s})",
                            f"{EACH}, noise",
                        ),
                    ),
                    min=0,
                ),
                Panel(
                    title="Reloads in a row that proved nothing",
                    description="The policies do not change, or some layers cannot be read back.",
                    queries=(
                        query(
                            "max by (run, pod, instance) (asympo_generator_unproven_reloads{$s})",
                            EACH,
                        ),
                    ),
                    min=0,
                ),
                Panel(
                    title="Groups held for a verdict",
                    description="Finished during a reload; appended once it is proved.",
                    queries=(query("sum by (run) (asympo_generator_groups_held{$s})", "{{run}}"),),
                    min=0,
                ),
            ),
        ),
    ),
)
