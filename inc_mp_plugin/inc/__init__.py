"""Intel Neural Compressor: files, selection, conversion, and the strategy."""
