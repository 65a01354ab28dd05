"""The learner's side of the rollout log: fence, reading, validation of groups, heartbeat."""
