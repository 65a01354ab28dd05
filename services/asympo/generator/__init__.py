"""A generator: leases prompts, has them answered and scored, appends the groups, swaps policies in flight.

- From lease to append: `worker`, `inflight`, `group`, `journal`; `calls` for whatever blocks.
- From announcement to verdict: `watcher`, `reloader`, `verdict`, `gate`.
- Start: `app` wires; `join`.
- Doors: `core` behind `api` and `rpc`; `metrics`; `presence_reporter`.
"""
