"""The dashboard of slots, broker and storage."""

from panels import Board, Panel, gauge, quantiles, query, rate

ROLLOUT_LOG = Board(
    name="rollout-log",
    title="ASymPO / Rollout log",
    description="Does work flow from generators to the learner, and is anything lost?",
    rows=(
        (
            "Flow",
            (
                Panel(
                    title="Slots",
                    description="Leased and open together never exceed the capacity.",
                    queries=(
                        query(
                            'max by (run, state) (asympo_learner_slots{$s,state!="capacity"})', "{{state}}"
                        ),
                        # Not the recorded one: that is from another moment, and the sum would jump.
                        query(
                            'max by (run) (asympo_learner_slots{$s,state="capacity"})'
                            ' - max by (run) (asympo_learner_slots{$s,state="leased"})'
                            ' - max by (run) (asympo_learner_slots{$s,state="open"})',
                            "free",
                        ),
                    ),
                    is_stacked=True,
                    min=0,
                ),
                Panel(
                    title="Backlog",
                    description="Appended and not yet trained.",
                    queries=(gauge("asympo_learner_backlog_groups", "{{run}}"),),
                    min=0,
                    alerts=("AsympoBacklogStuck",),
                ),
                Panel(
                    title="Groups in and out",
                    description="Appended by producers, consumed by the learner.",
                    queries=(
                        rate("asympo_learner_appended_groups_total", "appended"),
                        rate("asympo_learner_groups_total", "consumed"),
                    ),
                    unit="cps",
                    min=0,
                ),
                Panel(
                    title="Queue staleness of groups",
                    description="Policies published between append and training; at most max_staleness.",
                    queries=quantiles("asympo_learner_group_queue_staleness_policies", "have less"),
                    min=0,
                ),
            ),
        ),
        (
            "Lost work",
            (
                Panel(
                    title="Lease expiries, wasted groups, prompt failures",
                    description="An expired lease goes to someone else; a wasted group came too late.",
                    queries=(
                        rate("asympo_learner_lease_expiries_total", "lease expiries"),
                        rate("asympo_learner_wasted_groups_total", "wasted groups"),
                        rate("asympo_learner_prompt_failures_total", "prompt failures"),
                    ),
                    unit="cps",
                    min=0,
                    alerts=("AsympoLeaseExpiries", "AsympoWastedGroups", "AsympoPromptFailures"),
                ),
                Panel(
                    title="Dead letters",
                    description="Records refused since the learner started.",
                    queries=(
                        query('sum by (run) (asympo_learner_groups_total{$s,kind="invalid"})', "{{run}}"),
                    ),
                    is_number=True,
                    colours=((0, "green"), (1, "red")),
                    alerts=("AsympoDeadLetters",),
                ),
                Panel(
                    title="Unreadable values on the broker",
                    description="Reports and entries that nobody can read, at each reading, by key.",
                    queries=(rate("asympo_learner_unreadable_values_total", "{{key}}", "key"),),
                    unit="cps",
                    min=0,
                ),
                Panel(
                    title="Owner",
                    description="Fence of the learner; a change means that another one took over.",
                    queries=(gauge("asympo_learner_fence", "{{run}}"),),
                    is_number=True,
                    alerts=("AsympoFenceFlaps", "AsympoLearnerGone"),
                ),
            ),
        ),
        (
            "Broker and storage",
            (
                Panel(
                    title="Memory of the broker",
                    description="Appends are refused at the limit; a limit of 0 is none.",
                    queries=(
                        gauge("asympo_learner_broker_used_bytes", "used"),
                        gauge("asympo_learner_log_bytes", "log of this run"),
                        gauge("asympo_learner_broker_max_bytes", "limit"),
                    ),
                    unit="bytes",
                    min=0,
                    alerts=("AsympoBrokerMemory",),
                ),
                Panel(
                    title="Answers of the broker",
                    description="Time of one question that the learner asks three times a minute.",
                    queries=quantiles("asympo_learner_broker_seconds"),
                    unit="s",
                    min=0,
                    alerts=("AsympoBrokerDown",),
                ),
                Panel(
                    title="Disk of the broker",
                    description="Claims of brokers in the namespace, from the kubelet.",
                    queries=tuple(
                        query(
                            f"kubelet_volume_stats_{noun}_bytes"
                            '{namespace=~"$namespace",persistentvolumeclaim=~"data-.*-redis-.*"}',
                            f"{{{{persistentvolumeclaim}}}} {legend}",
                        )
                        for noun, legend in (("available", "free"), ("capacity", "size"))
                    ),
                    unit="bytes",
                    alerts=("AsympoBrokerVolumeLow",),
                    min=0,
                ),
                Panel(
                    title="Synced before acknowledged",
                    description="Whether an acknowledged group survives a crash of the broker.",
                    queries=(gauge("asympo_learner_broker_durable", "{{run}}"),),
                    is_number=True,
                    colours=((0, "red"), (1, "green")),
                    words=((0, "no"), (1, "yes")),
                    alerts=("AsympoBrokerNotDurable",),
                ),
                Panel(
                    title="Room for checkpoints",
                    description="On the learner's storage.",
                    queries=(
                        gauge("asympo_learner_storage_free_bytes", "free"),
                        gauge("asympo_learner_storage_total_bytes", "size"),
                    ),
                    unit="bytes",
                    min=0,
                    alerts=("AsympoStorageLow",),
                ),
            ),
        ),
    ),
)
