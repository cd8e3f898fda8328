"""A model while it is measured: how it runs, and which of its ops were not reached."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import nn

from inc_mp_plugin.core.errors import InputError, few
from inc_mp_plugin.core.graph import Graph
from inc_mp_plugin.libraries.optimum_habana import is_of_optimum_habana
from inc_mp_plugin.libraries.torch import evaluating
from inc_mp_plugin.model.attention import exposed_bgemms
from inc_mp_plugin.model.attention_by_heads import by_heads
from inc_mp_plugin.model.expert_kernels import kernels_through_modules
from inc_mp_plugin.model.experts import exposed_experts
from inc_mp_plugin.model.products_in_fp32 import products_in_fp32
from inc_mp_plugin.runtime.progress import warn

_RANDOM = ("drop", "jitter")  # in the names of settings that make training mode random


class Kernels(NamedTuple):
    """Kernels of matrix products: attention's of some key heads at a time; BF16 and FP16 ones in FP32."""

    by_key_heads: bool = False
    in_fp32: bool = False


@contextmanager
def as_measured(model: nn.Module, kernels: Kernels | None = None) -> Iterator[None]:
    """Hold a model inside a `with` as it is measured; all is put back at the end.

    It runs without randomness, its parameters are frozen, gradients are on, and hidden products are exposed.

    Args:
        model: of the user.
        kernels: of its matrix products; None for the model's own.

    Raises:
        InputError: optimum-habana's code would run with dropout.
    """
    with evaluating(model), _frozen(model):
        _switch_habana_to_training(model)
        # Parameters made in inference mode could not be differentiated through.
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            exposed_bgemms(model),
            by_heads(model) if kernels and kernels.by_key_heads else nullcontext(),
            products_in_fp32() if kernels and kernels.in_fp32 else nullcontext(),
            exposed_experts(model),
            kernels_through_modules(model),
        ):
            yield


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    # By name: accelerate puts new parameters in with every pass.
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    try:
        for name in trainable:
            model.get_parameter(name).requires_grad_(False)
        yield
    finally:
        for name in trainable:
            model.get_parameter(name).requires_grad_(True)


def say_unreached(graph: Graph, reached: Collection[str]) -> None:
    """Name the ops that no sample reached, such as experts that no token was sent to."""
    missed = [op.name for op in graph.ops if op.name not in reached]
    if missed:
        warn(
            f"no sample reached {len(missed)} of {len(graph.ops)} ops ({few(missed)}): "
            "they stay in the base format; more samples may reach them"
        )


def _switch_habana_to_training(model: nn.Module) -> None:
    """Switch optimum-habana's modules to training mode, in which they change no tensor in place.

    Raises:
        InputError: they would run with dropout or jitter.
    """
    modules = [module for module in model.modules() if is_of_optimum_habana(module)]
    for config in {id(c): c for m in modules if (c := getattr(m, "config", None)) is not None}.values():
        for name, value in vars(config).items():
            if isinstance(value, float) and value and any(word in name for word in _RANDOM):
                message = (
                    f"the model's config has {name}={value}, which must be 0: optimum-habana's code runs in "
                    "training mode here, because in evaluation mode it changes inputs in place, which no "
                    "gradient survives"
                )
                raise InputError(message)
    for module in modules:
        module.training = True
