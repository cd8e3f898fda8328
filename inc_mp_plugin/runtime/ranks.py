"""Several processes of torch.distributed: the first one decides, all of them measure.

Without a process group every function acts as for one process alone.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from inc_mp_plugin.core.errors import PluginError

if TYPE_CHECKING:
    import numpy as np
    import torch

    Arrays = Mapping[str, Any]

Item = TypeVar("Item")

_first: list[Callable[[], None]] = []  # is called before an exchange


def rank() -> int:
    """Return the number of this process; 0 is the one that decides."""
    return _group().get_rank() if _started() else 0


def size() -> int:
    """Return the number of processes."""
    return _group().get_world_size() if _started() else 1


@contextmanager
def joined() -> Iterator[None]:
    """Join the processes that `torchrun` started with this one, if it did."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or _started():
        yield
        return
    # Others wait while the first process solves and validates, which may take hours.
    _group().init_process_group("gloo", timeout=timedelta(days=7))
    try:
        yield
    finally:
        _group().destroy_process_group()


def share(items: Sequence[Item]) -> Sequence[Item]:
    """Return the part of this process: consecutive items, so that all parts in a row are the whole.

    Example:
        >>> share([1, 2, 3])
        [1, 2, 3]
    """
    start, stop = (len(items) * number // size() for number in (rank(), rank() + 1))
    return items[start:stop]


@contextmanager
def first(function: Callable[[], None]) -> Iterator[None]:
    """Call a function before every exchange inside a `with`."""
    _first.append(function)
    try:
        yield
    finally:
        _first.remove(function)


def exchange(content: bytes) -> list[bytes]:
    """Gather what every process gave, in the order of their ranks."""
    for function in _first:
        function()
    return gather(content)


def gather(content: bytes) -> list[bytes]:
    """Gather as `exchange` does, and call nothing before."""
    if size() == 1:
        return [content]
    with _all_there():
        return _gather(content)


def _gather(content: bytes) -> list[bytes]:
    import torch

    lengths = [torch.zeros(1, dtype=torch.long, device=_device()) for _ in range(size())]
    _group().all_gather(lengths, torch.tensor([len(content)], device=_device()))
    longest = max(int(length) for length in lengths)
    parts = [torch.zeros(longest, dtype=torch.uint8, device=_device()) for _ in range(size())]
    _group().all_gather(parts, _tensor(content.ljust(longest, b"\0")))
    return [part.cpu().numpy().tobytes()[: int(length)] for part, length in zip(parts, lengths, strict=True)]


def exchange_arrays(arrays: Arrays) -> list[dict[str, np.ndarray[Any, Any]]]:
    """Gather the arrays of every process, in the order of their ranks."""
    import numpy as np

    if size() == 1:
        return [dict(arrays)]
    buffer = io.BytesIO()
    named: dict[str, Any] = {f"_{name}": array for name, array in arrays.items()}  # a name may be "file"
    np.savez(buffer, **named)
    gathered = []
    for content in exchange(buffer.getvalue()):
        with np.load(io.BytesIO(content), allow_pickle=False) as part:
            gathered.append({name[1:]: part[name] for name in part.files})
    return gathered


def before(count: int) -> int:
    """Add up the counts of the processes before this one, each of which gave its own.

    Example:
        >>> before(3)
        0
    """
    return sum(int(content) for content in exchange(b"%d" % count)[: rank()])


def wait() -> None:
    """Wait until every process has come here."""
    exchange(b"here")


def tell(content: bytes) -> None:
    """Send something from the first process to all others, which `hear` it."""
    if size() > 1:
        with _all_there():
            _broadcast(content)


def hear() -> bytes:
    """Wait for what the first process tells, and return it."""
    with _all_there():
        return _broadcast(b"")


@contextmanager
def _all_there() -> Iterator[None]:
    """Turn the backend's error inside a `with`, that a process is gone, into a line."""
    try:
        yield
    except RuntimeError as error:  # all that gloo and NCCL raise
        message = f"another process of this run has ended, and its own error says why ({_sentence(error)})"
        raise PluginError(message) from error


def _sentence(error: RuntimeError) -> str:
    return str(error).strip().partition("\n")[0].partition(". ")[0]


def _broadcast(content: bytes) -> bytes:
    import torch

    length = torch.tensor([len(content)], device=_device())
    _group().broadcast(length, 0)
    data = _tensor(content) if rank() == 0 else torch.zeros(int(length), dtype=torch.uint8, device=_device())
    _group().broadcast(data, 0)
    return data.cpu().numpy().tobytes()


def _tensor(content: bytes) -> torch.Tensor:
    import torch

    return torch.frombuffer(bytearray(content), dtype=torch.uint8).to(_device())


def _device() -> torch.device:
    """Return the device on which the group's backend wants its tensors."""
    import torch

    accelerator = torch.accelerator.current_accelerator()
    if accelerator is None or "gloo" in str(_group().get_backend()):
        return torch.device("cpu")
    return accelerator


def _started() -> bool:
    import sys

    if "torch" not in sys.modules:  # nobody can have started a group
        return False
    return bool(_group().is_available() and _group().is_initialized())


def _group() -> Any:
    from torch import distributed

    return distributed
