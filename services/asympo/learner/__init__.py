"""The learner: reads groups in log order, steps, publishes. Its rooms are listed in docs/architecture.md.

Beside the rooms: `app` and `build` wire, `trainer` is the loop, `rank_worker` what other ranks do;
`control` is what the doors see and steer, `progress` and `ledger` where a run stands.
"""
