"""`asympo chaos`: breaks every part of a real run by plan, and audits what was lost or done twice."""
