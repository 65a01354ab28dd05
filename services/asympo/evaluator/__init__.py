"""The evaluator: measures published policies beside the run, and feeds nothing that trains.

- Start and loop: `app`; what it is told: `settings`, `config`.
- One evaluation: `measure` asks through a sampler (`samplers`), scores, and makes numbers (`estimate`).
"""
