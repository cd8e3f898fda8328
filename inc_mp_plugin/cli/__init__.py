"""`inc-mp`, the command line."""
