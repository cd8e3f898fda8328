"""How much the loss moves when an op is rounded."""
