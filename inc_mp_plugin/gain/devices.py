"""Timing one call on a device: what has to be waited for before the clock is read."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from inc_mp_plugin.core.errors import InputError, unknown
from inc_mp_plugin.core.literals import TimedDevice

if TYPE_CHECKING:
    from collections.abc import Mapping

Clock = Callable[[], float]


class Device(Protocol):
    """A device on which calls are timed.

    `name` is torch's name of the device; `description` names the hardware, for the artefact. With
    `static_shapes`, a new shape or format means compiling anew, so key-value caches must not grow.
    """

    name: TimedDevice
    description: str
    static_shapes: bool

    def seconds(self, call: Callable[[], object]) -> float:
        """Run a call on the idle device; return the time until all its work is done, in seconds."""
        ...


class CPU:
    """The CPU: calls end when their work is done."""

    name: TimedDevice = "cpu"
    static_shapes = False

    def __init__(self, clock: Clock = time.perf_counter) -> None:
        """Time with `clock`."""
        import torch

        self._clock = clock
        self.description = f"{_processor()}, {torch.get_num_threads()} threads"

    def seconds(self, call: Callable[[], object]) -> float:
        """Time a call from its start to its return, in seconds."""
        start = self._clock()
        call()
        return self._clock() - start


class CUDA:
    """A CUDA GPU: events on its stream, read when the device is idle."""

    name: TimedDevice = "cuda"
    static_shapes = False

    def __init__(self) -> None:
        """Take the current CUDA device.

        Raises:
            InputError: torch finds no CUDA device.
        """
        import torch

        if not torch.cuda.is_available():
            message = "timing.device is 'cuda', but torch finds no CUDA device here; give 'cpu'"
            raise InputError(message)
        self._cuda: Any = torch.cuda
        self.description = str(torch.cuda.get_device_name())

    def seconds(self, call: Callable[[], object]) -> float:
        """Time a call, in seconds, between an event before its first kernel and one after its last."""
        start, end = (self._cuda.Event(enable_timing=True) for _ in range(2))
        self._cuda.synchronize()
        start.record()
        call()
        end.record()
        self._cuda.synchronize()
        return float(start.elapsed_time(end)) / 1e3


class HPU:
    """A Gaudi: work is collected lazily, so it is sent off by `mark_step` and then waited for.

    `mark_step` alone waits for the host, not for the device. Compiling happens in the first calls of
    a configuration, which the harness keeps apart.
    """

    name: TimedDevice = "hpu"
    static_shapes = True

    def __init__(self, clock: Clock = time.perf_counter) -> None:
        """Take the current Gaudi and time with `clock`.

        Raises:
            InputError: the Gaudi software is not installed, or finds no device.
        """
        try:
            import habana_frameworks.torch as habana
            import habana_frameworks.torch.core as core
        except ImportError as error:
            message = "timing.device is 'hpu', but habana_frameworks is not installed here; give 'cpu'"
            raise InputError(message) from error
        if not habana.hpu.is_available():
            message = "timing.device is 'hpu', but habana_frameworks finds no Gaudi here; give 'cpu'"
            raise InputError(message)
        self._clock, self._core, self._hpu = clock, core, habana.hpu
        self.description = str(habana.hpu.get_device_name())

    def seconds(self, call: Callable[[], object]) -> float:
        """Time a call from an idle device to an idle device, in seconds."""
        self._wait()
        start = self._clock()
        call()
        self._wait()
        return self._clock() - start

    def _wait(self) -> None:
        self._core.mark_step()
        self._hpu.synchronize()


DEVICES: Mapping[str, Callable[[], Device]] = {"cpu": CPU, "cuda": CUDA, "hpu": HPU}


def get_device(name: str) -> Device:
    """Take a device by its name.

    Raises:
        InputError: the name is unknown, or there is no such device here.
    """
    if name not in DEVICES:
        raise InputError(unknown("timing device", name, DEVICES))
    return DEVICES[name]()


def _processor() -> str:
    """Return the name of the processor; on Linux the kernel knows it best."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
