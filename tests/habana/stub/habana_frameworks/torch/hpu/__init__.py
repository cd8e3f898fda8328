"""torch.hpu: what asks for the device, and calls that have nothing to do on a CPU."""

import contextlib

import torch

from habana_frameworks import device as stub_device
from habana_frameworks.torch.hpu import random  # noqa: F401


def is_available() -> bool:
    """Whether a Gaudi is pretended; tensors stay on the CPU all the same."""
    return stub_device.name() is not None


def is_initialized() -> bool:
    """Always: otherwise optimum-habana makes "hpu" the default device of gradient checkpointing."""
    return True


def device_count() -> int:
    return int(is_available())


def current_device() -> int:
    return 0


def set_device(index) -> None:
    """There is one device only."""


def device(index=None) -> torch.device:
    return torch.device("cpu")


def get_device_name(index=None) -> str:
    return (stub_device.name() or "gaudi2").upper()


def synchronize(*args) -> None:
    """Everything has already happened."""


def empty_cache() -> None:
    """There is no cache."""


def memory_stats(*args) -> dict:
    return {"InUse": 0, "MaxInUse": 0, "Limit": 0}


def is_autocast_hpu_enabled() -> bool:
    return False


def get_autocast_hpu_dtype() -> torch.dtype:
    return torch.bfloat16


def wrap_in_hpu_graph(model, **kwargs):
    """Graphs change speed only."""
    return model


@contextlib.contextmanager
def sdp_kernel(*args, **kwargs):
    """Would choose how fused attention is computed."""
    yield
