"""The gateway: the door of the rollout log for everything that is not our generator.

Thin `api` (HTTP) and `rpc` (gRPC) over one `core`; who may do what is in `producers`. It samples nothing and
trains nothing, and holds no state that a restart would lose except sessions in progress.
"""
