"""Utilities of the Gaudi software."""
