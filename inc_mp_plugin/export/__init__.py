"""Plans as checkpoints that servers load: compressed-tensors, written and checked."""
