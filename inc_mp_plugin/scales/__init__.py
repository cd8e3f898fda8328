"""INC's scales of FP8: the divisors of tensors, and ops that have no scale."""
