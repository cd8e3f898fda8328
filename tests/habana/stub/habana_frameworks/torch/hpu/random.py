"""The device's random numbers, which are the CPU's."""


def manual_seed_all(seed) -> None:
    """torch.manual_seed has done it."""
