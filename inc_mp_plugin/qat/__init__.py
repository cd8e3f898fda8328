"""Training with integers in the loop: steps that are learned, and a model that adapts to its formats."""
