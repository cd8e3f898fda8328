"""`ip_mse` inside of Intel Neural Compressor."""
