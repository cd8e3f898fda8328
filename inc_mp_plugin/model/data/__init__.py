"""Samples of files and datasets, as batches of tokens and images."""
