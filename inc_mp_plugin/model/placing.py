"""Places of a model's weights: a card as far as it goes, then memory, then a disk; accelerate moves them."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from inc_mp_plugin.runtime.progress import say

if TYPE_CHECKING:
    from torch import nn

_OF_THE_CARD = 0.5  # for weights that stay there; the other half is for what runs
_NAMES = {"cpu": "in memory", "disk": "on disk"}

Room = Mapping[int | str, int]


def in_places(load: Callable[..., nn.Module]) -> nn.Module:
    """Load a model into the places that have room for its weights, and say how much went where.

    Args:
        load: loads it, with these keywords of `from_pretrained`.
    """
    model = _placed(load, room())
    say(f"device_map: auto, {_summary(model)}")
    return model


def in_files(load: Callable[..., nn.Module]) -> nn.Module:
    """Load a model whose weights stay in their files: each is read, and cast, when its module runs.

    Args:
        load: loads it, with these keywords of `from_pretrained`.
    """
    return _placed(load, {"cpu": 0})


def _placed(load: Callable[..., nn.Module], places: Room) -> nn.Module:
    # Weights in safetensors files stay in their files; others are written anew, into this folder.
    folder = tempfile.mkdtemp(prefix="inc-mp-weights-")
    try:
        model = load(device_map="auto", max_memory=dict(places), offload_folder=folder)
    except BaseException:
        shutil.rmtree(folder)
        raise
    weakref.finalize(model, shutil.rmtree, folder, ignore_errors=True)
    return model


def room() -> Room:
    """Tell how many bytes of weights go to the first card, half of what is free, and to memory, all of it.

    Of several cards one runs the model, for all of them would wait for each other: `parallel: fsdp` uses all.
    """
    from accelerate.utils import get_max_memory

    free: dict[int | str, int] = get_max_memory()
    cards = {place: int(_OF_THE_CARD * size) for place, size in free.items() if place != "cpu"}
    return {**dict(list(cards.items())[:1]), "cpu": free["cpu"]}


def _summary(model: nn.Module) -> str:
    """Write how many bytes of weights are in each place."""
    places: Mapping[str, Any] = getattr(model, "hf_device_map", {})
    sizes = Counter[str]()
    for name, parameter in model.named_parameters():
        place = next(
            (str(p) for part, p in places.items() if f"{name}.".startswith(f"{part}." if part else "")), "cpu"
        )
        sizes[_NAMES.get(place, f"on card {place}")] += parameter.nbytes
    return ", ".join(f"{size / 1e9:.3g} GB {place}" for place, size in sizes.items())
