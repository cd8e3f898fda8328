"""Files, processes and messages."""
