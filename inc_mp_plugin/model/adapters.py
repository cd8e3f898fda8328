"""Adapters of PEFT: folders that hold what a fine-tuning added to a base model."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inc_mp_plugin.core.errors import InputError, few
from inc_mp_plugin.model.load_errors import loading

if TYPE_CHECKING:
    from torch import nn

_SETTINGS = "adapter_config.json"


def base_of(name_or_path: str) -> str:
    """Name the base model of an adapter; anything but the folder of an adapter is a base model itself.

    Raises:
        InputError: the adapter names none.
    """
    path = Path(name_or_path) / _SETTINGS
    if not path.is_file():
        return name_or_path
    with loading("adapter", name_or_path):
        base = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base:
        message = f"{path} names no base model; put its folder or name there, as base_model_name_or_path"
        raise InputError(message)
    return str(base)


def is_adapter(name_or_path: str) -> bool:
    """Tell whether a folder holds an adapter."""
    return (Path(name_or_path) / _SETTINGS).is_file()


def with_empty_adapter(base: nn.Module, folder: str) -> nn.Module:
    """Put an adapter without weights on a base model without weights, as a `PeftModel`.

    Raises:
        InputError: PEFT is missing or cannot make it.
    """
    import torch

    _require(folder)
    with loading("adapter", folder), torch.device("meta"):
        from peft import PeftConfig, get_peft_model

        model: nn.Module = get_peft_model(base, PeftConfig.from_pretrained(folder))
    return model


def with_adapter(base: nn.Module, folder: str, *, merge: bool) -> nn.Module:
    """Put an adapter on its base model, as a `PeftModel`, or merge it into the base model's weights.

    Args:
        base: as it was loaded; it is changed.
        folder: of the adapter.
        merge: return the base model with other weights, without any module of the adapter.

    Raises:
        InputError: PEFT is missing or cannot load it, it does not hold all its weights, or cannot be merged.
    """
    _require(folder)
    with loading("adapter", folder):
        from peft import PeftModel

        # An adapter on its own runs in the base format, as everything does; merged, PEFT adds it up in FP32.
        adapted: Any = PeftModel.from_pretrained(base, folder, autocast_adapter_dtype=merge)
    _check_whole(adapted, folder)
    if not merge:
        return adapted  # type: ignore[no-any-return]
    if not hasattr(adapted, "merge_and_unload"):
        kind = getattr(adapted.active_peft_config.peft_type, "value", "adapter")
        message = f"{folder!r} holds a {kind}, which cannot be merged; leave model.merge_adapters out"
        raise InputError(message)
    with loading("adapter", folder):
        merged: nn.Module = adapted.merge_and_unload()
    return merged


def _require(folder: str) -> None:
    if not find_spec("peft"):
        message = f"{folder!r} holds an adapter of PEFT, which is not installed; pip install peft"
        raise InputError(message)


def _check_whole(adapted: Any, folder: str) -> None:
    """Check that the files held every weight of the adapter: PEFT only warns of random ones.

    Raises:
        InputError: a weight is missing.
    """
    from peft import get_peft_model_state_dict, load_peft_weights

    needed = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    missing = sorted(needed.keys() - load_peft_weights(folder, device="cpu").keys())
    if missing:
        message = (
            f"the adapter {folder!r} cannot be used: its files hold no {few(missing)}, which would be random "
            "numbers; its adapter_config.json or its weights are of another adapter, or incomplete"
        )
        raise InputError(message)
