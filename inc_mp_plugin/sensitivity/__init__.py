"""Sensitivities of the loss to the rounding of ops."""
