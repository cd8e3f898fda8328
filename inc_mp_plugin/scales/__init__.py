"""INC's scales of FP8: what a tensor is divided by, and ops that have no scale."""
