"""The model's graph: ops and their groups."""
