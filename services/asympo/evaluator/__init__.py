"""The evaluator: measures published policies beside the run, and feeds nothing that trains.

- Start and shutdown: `app`; the loop: `loop`; settings: `settings`, `config`.
- One evaluation: `measure` asks through a sampler (`samplers`), scores, and makes numbers (`estimate`).
"""
