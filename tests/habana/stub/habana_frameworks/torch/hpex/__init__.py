"""Gaudi kernels."""
