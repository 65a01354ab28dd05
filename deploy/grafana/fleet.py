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
                    alerts=("AsympoNoGenerators", "AsympoGeneratorNotReady"),
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
                    alerts=(
                        "AsympoLearnerStarved",
                        "AsympoSlotsExhausted",
                        "AsympoNoGroups",
                        "AsympoGeneratorsIdle",
                    ),
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
                    alerts=("AsympoGeneratorStalled",),
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
                    alerts=("AsympoTruncated",),
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
                    alerts=(
                        "AsympoRewardsFailing",
                        "AsympoEngineFailures",
                        "AsympoBrokerErrors",
                        "AsympoUnexpectedErrors",
                    ),
                ),
            ),
        ),
        (
            "Engines and pods",
            (
                Panel(
                    title="KV cache in use",
                    description="Near 100 % requests are preempted: take fewer groups in flight.",
                    queries=(query("max by (run, pod, instance) (asympo_generator_cache_ratio{$s})", EACH),),
                    unit="percentunit",
                    min=0,
                    max=1,
                ),
                Panel(
                    title="Preemptions",
                    description="Requests taken out of a full KV cache and computed again.",
                    queries=(rate("asympo_generator_preemptions_total", EACH, "pod, instance"),),
                    unit="cps",
                    min=0,
                ),
                Panel(
                    title="Use of GPUs",
                    description="All in the namespace, from NVIDIA's DCGM exporter; empty without one.",
                    queries=(
                        query(
                            'DCGM_FI_DEV_GPU_UTIL{exported_namespace=~"$namespace"} / 100',
                            "{{exported_pod}} {{gpu}}",
                        ),
                    ),
                    unit="percentunit",
                    min=0,
                    max=1,
                ),
                Panel(
                    title="Restarts of containers",
                    description="All in the namespace, within an hour, from kube-state-metrics.",
                    queries=(
                        query(
                            "sum by (pod, container) (increase("
                            'kube_pod_container_status_restarts_total{namespace=~"$namespace"}[1h])) > 0',
                            "{{pod}} {{container}}",
                        ),
                    ),
                    alerts=("AsympoCrashLoop",),
                    min=0,
                ),
            ),
        ),
        (
            "Gateway, where there is one",
            (
                Panel(
                    title="Groups by producer",
                    description="Submitted ones by how they ended.",
                    queries=(
                        rate("asympo_gateway_groups_total", "{{producer}} {{outcome}}", "producer, outcome"),
                    ),
                    unit="cps",
                    is_stacked=True,
                ),
                Panel(
                    title="Waiting and leased groups, open sessions",
                    description="Now.",
                    queries=tuple(
                        query(f"sum by (run) (asympo_gateway_{noun}{{$s}})", legend)
                        for noun, legend in (
                            ("queued_groups", "queued groups"),
                            ("leases", "leases"),
                            ("open_sessions", "open sessions"),
                        )
                    ),
                    min=0,
                ),
                Panel(
                    title="Taking a group",
                    description="From a producer's call to the answer.",
                    queries=quantiles("asympo_gateway_submit_seconds"),
                    unit="s",
                    min=0,
                ),
                Panel(
                    title="Sessions by how they ended, and their groups",
                    description="Agents that know only an address.",
                    queries=(
                        rate("asympo_gateway_sessions_total", "sessions {{outcome}}", "outcome"),
                        rate("asympo_gateway_session_groups_total", "groups {{outcome}}", "outcome"),
                    ),
                    unit="cps",
                ),
                Panel(
                    title="Refused calls, broker errors",
                    description="A second.",
                    queries=(
                        rate("asympo_gateway_refused_calls_total", "refused"),
                        rate("asympo_gateway_broker_errors_total", "broker"),
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
                    alerts=("AsympoReloadsStopped",),
                ),
                Panel(
                    title="Reloads by verdict",
                    description="proved: every layer holds the new policy. unchanged: it equals the old one. "
                    "unproven: some layers cannot be read back. failed: the engine serves something else.",
                    queries=(rate("asympo_generator_reloads_total", "{{verdict}}", "verdict"),),
                    unit="cps",
                    is_stacked=True,
                    alerts=("AsympoProbeFailed",),
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
                    alerts=("AsympoProbeDrift",),
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
                    alerts=("AsympoReloadsUnproven",),
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
