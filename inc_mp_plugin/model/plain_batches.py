"""Batches as users pass them, made plain: tensors, tuples and dicts, as often as they are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.model.batches import OnDevice, batch_size
from inc_mp_plugin.model.spool import Spool

if TYPE_CHECKING:
    from inc_mp_plugin.model.batches import Batch

_ADVICE = "give an iterable of batches, such as [batch] or a DataLoader"


def plain_batches(batches: Iterable[Any]) -> Sequence[Batch]:
    """Make a sequence of plain batches of whatever holds batches.

    A list or tuple stays in memory. A `DataLoader`, a generator, and any other iterable is gone through once,
    and its batches are kept in a temporary file: an order that is drawn anew every time would give every pass
    other samples. Of a `datasets.Dataset` every row is a batch of one sample.

    Args:
        batches: of tensors, tuples, lists, mappings (`BatchEncoding`, `UserDict`, `ModelOutput`), dataclasses
            or NumPy arrays, nested as the model takes them; lists of numbers in a mapping become tensors.

    Raises:
        InputError: they are no batches, or one of them holds no samples, text, objects, ragged lists, or
            other keys than the first one.
    """
    import torch

    if isinstance(batches, (OnDevice, Spool)):
        return batches  # plain already
    if isinstance(batches, (str, bytes, Mapping, torch.Tensor, np.ndarray, torch.nn.Module)):
        message = f"batches is one {type(batches).__name__}; {_ADVICE}"
        raise InputError(message)
    if not isinstance(batches, Iterable) and not hasattr(batches, "__getitem__"):
        message = f"batches is of type {type(batches).__name__}, which cannot be gone through; {_ADVICE}"
        raise InputError(message)
    rows = hasattr(batches, "features") and hasattr(batches, "column_names")  # of the library datasets
    if isinstance(batches, torch.utils.data.Dataset) and not rows:
        message = (
            f"batches is a {type(batches).__name__}, whose items are samples; "
            "give DataLoader(dataset, batch_size=...)"
        )
        raise InputError(message)
    made = (plain(batch, f"batch {number}", row=rows) for number, batch in enumerate(batches, 1))
    checked = _checked(made)
    return list(checked) if isinstance(batches, (list, tuple)) else Spool(checked)


def _checked(batches: Iterable[Batch]) -> Iterable[Batch]:
    """Check that every batch holds samples, under the keys of the first one."""
    keys: set[str] | None = None
    for number, batch in enumerate(batches, 1):
        try:
            batch_size(batch)
        except InputError as error:
            message = f"batch {number}: {error}"
            raise InputError(message) from error
        ids: Any = batch.get("input_ids") if isinstance(batch, dict) else None
        if getattr(ids, "ndim", 2) == 1:
            message = (
                f"batch {number}: input_ids have shape {tuple(ids.shape)}; the first axis counts samples: "
                "give (samples, tokens)"
            )
            raise InputError(message)
        here = set(batch) if isinstance(batch, dict) else set[str]()
        keys = here if keys is None else keys
        if here != keys:
            message = (
                f"batch {number} has the keys {sorted(here)}, batch 1 has {sorted(keys)}; "
                "give every batch the same ones"
            )
            raise InputError(message)
        yield batch


def plain(batch: Any, where: str, *, row: bool = False) -> Any:
    """Make a tensor, a tuple or a dict of a batch; what it holds keeps its structure.

    Args:
        batch: as the user has it.
        where: names it in errors.
        row: it is a single sample without an axis that counts samples.

    Raises:
        InputError: it holds text, objects, or lists of different lengths.
    """
    if is_dataclass(batch) and not isinstance(batch, (type, Mapping)):
        named = {field.name: getattr(batch, field.name) for field in fields(batch)}
        batch = {key: value for key, value in named.items() if value is not None}
    if isinstance(batch, Mapping):
        return {key: _entry(value, f"{where}, key `{key}`", row=row) for key, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        return tuple(_part(part, f"{where}, part {k}", row=row) for k, part in enumerate(batch, 1))
    return _part(batch, where, row=row)


def _part(value: Any, where: str, *, row: bool) -> Any:
    """Make tensors of the arrays in a part of a batch, and a dict of what only behaves like one."""
    import torch

    if isinstance(value, (np.ndarray, np.generic)):
        value = _tensor(np.asarray(value), where)
    if isinstance(value, torch.Tensor):
        if value.is_inference():  # nothing can be differentiated through it
            with torch.inference_mode(False):
                value = value.clone()
        return value.unsqueeze(0) if row else value
    if isinstance(value, (str, bytes)):
        message = f"{where}: text ({value[:20]!r}); turn it into numbers first, as a tokenizer does"
        raise InputError(message)
    if is_dataclass(value):
        if isinstance(value, Mapping):
            return value  # an output of transformers, which torch can take apart
        message = (
            f"{where}: a {type(value).__name__}, which torch cannot trace; give tensors, tuples or dicts"
        )
        raise InputError(message)
    if isinstance(value, Mapping):
        return {key: _entry(part, f"{where}, key `{key}`", row=row) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        parts = [_part(part, f"{where}, part {k}", row=row) for k, part in enumerate(value, 1)]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def _entry(value: Any, where: str, *, row: bool) -> Any:
    """Make a plain value of an entry of a mapping, in which lists of numbers are tensors."""
    import torch

    if isinstance(value, (list, tuple)) and _holds_numbers(value):
        try:
            return _part(torch.tensor(value), where, row=row)
        except (ValueError, TypeError) as error:
            message = (
                f"{where}: lists of different lengths; pad them, as "
                'tokenizer(..., padding=True, return_tensors="pt") does'
            )
            raise InputError(message) from error
    if row and isinstance(value, (int, float)):
        return torch.tensor([value])
    return _part(value, where, row=row)


def _holds_numbers(value: Any) -> bool:
    while isinstance(value, (list, tuple)) and value:
        value = value[0]
    return isinstance(value, (bool, int, float))


def _tensor(array: np.ndarray[Any, Any], where: str) -> Any:
    import torch

    try:
        return torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape))
    except TypeError as error:
        message = f"{where}: a NumPy array of dtype {array.dtype}; give one of numbers"
        raise InputError(message) from error
