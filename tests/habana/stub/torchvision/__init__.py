"""Empty: optimum-habana imports torchvision without needing it for language models."""
