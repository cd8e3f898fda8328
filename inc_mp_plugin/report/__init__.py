"""Artefacts as tables."""
