"""What every part shares: no torch, no vLLM, no service. What one service alone needs stays in that service.

- A group: `records` in memory, `codec` to bytes and back, `names` of runs and holders, `trained_ids`.
- A process: `settings` (those of a bucket in `object_store`), `lifecycle`, `clock`, `errors`.
- What it tells: `telemetry` (log lines and metrics), `tracing`, `jsonl` (rows in files).
- What crosses releases: `versions`.

The rooms: `rollout_log` (the only one that knows Redis), `checkpoints`, `archive`, `control`.
"""
