"""The graph of a model: ops and their groups."""
