"""Training from a log without owning it: replay of an archive, a second learner."""
