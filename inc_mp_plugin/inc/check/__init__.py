"""Checking an INC file, the user's own included."""
