"""Which device it is, and switches that change speed only."""

import enum

from habana_frameworks import device


class synDeviceType(enum.Enum):  # noqa: N801  the name is theirs
    """The devices that INC and optimum-habana tell apart."""

    synDeviceGaudi = "gaudi"
    synDeviceGaudi2 = "gaudi2"
    synDeviceGaudi3 = "gaudi3"


def _get_device_type() -> synDeviceType:
    return synDeviceType(device.name() or "gaudi2")


def _set_is_dynamic_quantization(flag) -> None:
    """Graphs only."""


def _set_scale_attributes(*args) -> None:
    """Graphs only."""
