"""Values only: no torch, no files, no printing."""
