"""The doors of the learner: HTTP and gRPC, thin over `LearnerControl`."""
